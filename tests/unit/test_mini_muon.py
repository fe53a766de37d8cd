"""Our float32 Muon is PyTorch's, but for the rounding of bfloat16."""

import pytest
import torch

from dev.mini.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(48, 16), (16, 80), (24, 24)])
def test_steps_are_those_of_pytorch(shape):
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    optimisers = Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, weight_decay=0.02, momentum=0.95)
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_singular_values_become_about_one():
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.6 < values.min() and values.max() < 1.3
