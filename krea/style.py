"""How much a reference picture counts: the tokens it is worth, their attention bias, and attention with that bias.

A reference is a set of tokens behind the text (FLUX.1 Redux). In attention a key bias of log(w) acts exactly as w
copies of the token would, p_j ~ exp(q.k_j / sqrt(d) + b_j), so how many tokens a picture is worth (detail) and how
much attention they draw (strength) are set apart: fewer tokens get a larger bias each.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

STRENGTH_DECADES = 1.5
ROWS = 1024  # queries that are looked at together where the bias differs from one to the next


def strength_scale(strength: float) -> float:
    """The share S of a whole picture's attention mass that a `strength` in 0..1 stands for.

    S = (10^(1.5 u) - 1) / (10^1.5 - 1): 0 at 0, 0.15 at 0.5, 1 at 1. The pull of a reference goes with the logarithm of
    its mass (a tenth of it already outweighs many prompts), so a slider linear in S would be spent at 0.2.
    """
    decades = STRENGTH_DECADES * math.log(10)
    return math.expm1(decades * strength) / math.expm1(decades)  # expm1: exact at small strengths, too


def key_biases(strength: float, native_tokens: int, weights: Sequence[float], counts: Sequence[int]) -> list[float]:
    """The key bias of each reference's tokens: b_r = log(S * M * (w_r / sum w) / n_r).

    S is `strength_scale(strength)` and M the `native_tokens` of a whole picture: one reference with all its tokens at
    strength 1 has the bias 0, which is plain Redux.

    Args:
        strength: above 0, up to 1.
        weights: w_r of each reference, above 0; only their ratios count.
        counts: n_r, how many tokens each reference is worth.
    """
    # A sum of logarithms, so that no product of small numbers becomes 0.
    scale = math.log(strength_scale(strength))
    return [
        scale + math.log(weight / sum(weights)) + math.log(native_tokens / count)
        for weight, count in zip(weights, counts, strict=True)
    ]


def pad_square(picture: torch.Tensor, fill: float) -> torch.Tensor:
    """(B, H, W, C) with `fill` above and below, or left and right, so that it is square."""
    height, width = picture.shape[1:3]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = picture.new_full((picture.shape[0], side, side, picture.shape[3]), fill)
    square[:, top : top + height, left : left + width] = picture
    return square


def crop_square(picture: torch.Tensor) -> torch.Tensor:
    """The square in the middle of (B, H, W, C)."""
    height, width = picture.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[:, top : top + side, left : left + side]


def pool_tokens(tokens: torch.Tensor, coverage: torch.Tensor, side: int) -> torch.Tensor:
    """A picture's tokens on a coarser grid, each the mean of the ones it covers, without the places that do not count.

    Args:
        tokens: (G, G, C), row by row.
        coverage: (G, G), how much of each place counts, 0 to 1, above 0 somewhere.
        side: tokens per side to keep, at least 1; G or more keeps them all.

    Returns:
        (N, C), N at most side * side: places of which less than half counts are left out, unless there are no others.
    """
    if side < len(tokens):
        share = F.adaptive_avg_pool2d(coverage[None], side)[0]
        total = F.adaptive_avg_pool2d((tokens * coverage[..., None]).movedim(-1, 0), side).movedim(0, -1)
        tokens, coverage = total / share.clamp(min=1e-6)[..., None], share
    return tokens[coverage >= min(0.5, coverage.max().item())]


class Keys(NamedTuple):
    """A run of keys in an attention: its bias, and for the queries that see less of it the share they see.

    share: (L,) in 0..1 for each query, or None where all see the whole of it.
    """

    start: int
    count: int
    bias: float
    share: torch.Tensor | None = None

    @property
    def unbiased(self) -> bool:
        """True where attention to these keys is what it would be without a bias."""
        return not self.bias and self.share is None


def biased_attention(
    attention: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    query: torch.Tensor,
    keys: Sequence[Keys],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention with a bias on some keys, in memory that grows with the number of keys, not with its square.

    Args:
        attention: (queries (B, heads, rows, D), mask) -> (B, rows, heads * D).
        query: (B, heads, L, D).
        mask: what is masked already, (..., 1 or L, L): False to hide, or numbers to add to the logits; or None.
    """
    if all(run.unbiased for run in keys):
        return attention(query, mask)
    length = query.shape[2]
    bias = query.new_zeros(length)
    for run in keys:
        bias[run.start : run.start + run.count] += run.bias
    if all(run.share is None for run in keys):
        return attention(query, _add(mask, bias.view(1, 1, 1, length), slice(None)))
    parts = []
    for first in range(0, length, ROWS):
        rows = slice(first, min(first + ROWS, length))
        part = bias.repeat(rows.stop - first, 1)
        for run in keys:
            if run.share is not None:
                part[:, run.start : run.start + run.count] += run.share[rows, None].log().to(part)
        parts.append(attention(query[:, :, rows], _add(mask, part[None, None], rows)))
    return torch.cat(parts, 1)


def _add(mask: torch.Tensor | None, bias: torch.Tensor, rows: slice) -> torch.Tensor:
    """`bias` plus the rows of a mask, as (1 or B, 1, 1 or rows, L)."""
    if mask is None:
        return bias
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[2] > 1:
        mask = mask[:, :, rows]
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, -torch.inf)
    return mask.to(bias) + bias
