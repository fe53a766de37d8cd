"""Training for negative prompts: what is drawn as wanted, and that a batch is a function of its number."""

import random

import pytest
import torch

from dev.mini import negatives as negatives_module
from dev.mini.captions import article
from dev.mini.negatives import PAIRS, Negatives
from dev.mini.pictures import COLOURS, SQUARE, draw, held_out, single_scene
from dev.mini.train import Model


@pytest.fixture
def negatives(trained, encoder, captions, monkeypatch):
    monkeypatch.setattr(negatives_module, "STATES", (0, 3, 14))
    return Negatives(trained, captions, encoder)


def likelihoods(negatives: Negatives, colour: str, sigma: float) -> torch.Tensor:
    """Shares of the colours that a star on a white wall may have, in a noisy picture of one with its own light."""
    scene = single_scene(SQUARE, "white", colour, "star", random.Random(8))
    noise = torch.randn(16, 32, 32, generator=torch.Generator().manual_seed(1))
    state = (1 - sigma) * torch.from_numpy(negatives.encoder(draw(scene))) + sigma * noise
    names = [name for name in COLOURS if name != "white"]
    (row,) = negatives._likelihoods(SQUARE, [("star", "white")], [names], state[None], sigma)
    return row.softmax(0)


@pytest.mark.parametrize("colour", ["red", "purple", "black"])
def test_the_colour_under_the_noise_is_the_likely_one(negatives, colour):
    names = [name for name in COLOURS if name != "white"]
    assert likelihoods(negatives, colour, 0.85)[names.index(colour)] > 0.99


def test_pure_noise_is_explained_by_every_colour_alike(negatives):
    assert likelihoods(negatives, "red", 1.0) == pytest.approx(1 / 7)


def test_a_batch_is_a_function_of_its_number(negatives):
    student = Model(len(negatives.captions.words)).flux
    losses = [negatives.loss(student, number).item() for number in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_what_is_wanted_is_never_the_unwanted_colour_nor_the_wall_nor_held_out(negatives, monkeypatch):
    texts = []
    encode = negatives.captions.encode
    monkeypatch.setattr(negatives.captions, "encode", lambda heads, tails: texts.append(heads) or encode(heads, tails))
    student = Model(len(negatives.captions.words)).flux
    seen = 0
    for number in range(3):
        texts.clear()
        negatives.loss(student, number)
        prompts, unwanted, *wanted = texts
        assert len(wanted) == len(negatives_module.STATES)
        for pair in range(PAIRS):
            _, kind, _, _, wall, _ = prompts[pair].split()
            (bad,) = (name for name in COLOURS if name in unwanted[pair])
            assert bad != wall
            for text in (row[pair] for row in wanted):
                (colour,) = (name for name in COLOURS if text.startswith(f"{article(name)} {kind} on"))
                assert text == f"{article(colour)} {kind} on {article(wall)} background"
                assert colour not in (bad, wall) and not held_out(colour, kind, wall)
                seen += 1
    assert seen == 3 * PAIRS * len(negatives_module.STATES)


def test_the_loss_falls_when_the_network_learns_a_batch(negatives):
    student = Model(len(negatives.captions.words)).flux
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = negatives.loss(student, 7)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
