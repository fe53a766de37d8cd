"""Several prompts in one sequence: each of their words stands and sees as it does in its prompt alone."""

import pytest
import torch

from krea.filters.packed_prompts import layout, shared_beginning


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[1, 2, 3, 4], [1, 2, 5]], 2),
        ([[1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1], [2]], 0),
    ],
)
def test_the_beginning_ends_before_the_last_word_of_each(prompts, words):
    assert shared_beginning(prompts) == words


@pytest.mark.parametrize(("beginning", "rests"), [(3, [2, 1, 4]), (1, [1]), (0, [2, 2])], ids=str)
def test_every_word_stands_and_sees_as_in_its_prompt_alone(beginning, rests):
    read = layout(beginning, rests, torch.device("cpu"))
    start = beginning
    for rest, end in zip(rests, read.ends, strict=True):
        prompt = torch.tensor([*range(beginning), *range(start, start + rest)])
        assert end == prompt[-1]
        assert read.positions[prompt].tolist() == list(range(len(prompt)))
        assert torch.equal(read.sees[prompt][:, prompt], torch.ones(len(prompt), len(prompt)).tril().bool())
        assert read.sees[prompt].sum() == len(prompt) * (len(prompt) + 1) // 2  # and nothing else
        start += rest
