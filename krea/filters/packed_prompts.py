"""Prompts that begin alike, as one sequence: their beginning is read once, and the rest of each as if it came alone.

A picture and the words around it are most of what a judge reads, and it has seven questions about each.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """How a sequence of a beginning and several rests is read.

    positions: (S,) of each word in its own prompt.
    sees: (S, S), true where the word of the row sees that of the column.
    ends: (B,) where the last word of each prompt stands.
    """

    positions: torch.Tensor
    sees: torch.Tensor
    ends: torch.Tensor


def shared_beginning(prompts: Sequence[Sequence]) -> int:
    """With how many words all prompts begin alike, at least one word being left of each."""
    return len(os.path.commonprefix([list(words[:-1]) for words in prompts]))


def layout(beginning: int, rests: Sequence[int], device: torch.device) -> Layout:
    """The layout for a beginning of that many words, and rests of these."""
    lengths = torch.tensor([beginning, *rests])
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)  # 0 is the beginning
    place = torch.arange(len(owner))
    first = lengths.cumsum(0) - lengths
    positions = place - first[owner] + beginning * (owner > 0)
    sees = (place[:, None] >= place) & ((owner == 0) | (owner[:, None] == owner))
    ends = (first + lengths - 1)[1:]
    return Layout(*(tensor.to(device) for tensor in (positions, sees, ends)))
