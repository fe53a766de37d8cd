"""Starting noise, one seed per image: image i of a batch is the image that seed + i makes alone."""

from collections.abc import Sequence

import torch

SEED_COUNT = 2**64  # seeds are 64-bit and wrap around


def batch_seeds(seed: int, batch_size: int, batch_index: Sequence[int] | None = None) -> list[int]:
    """The seed of each image of a batch.

    Args:
        seed: seed of the first image, 0 to 2**64 - 1.
        batch_size: number of images.
        batch_index: which image of an earlier batch each one is (ComfyUI's "batch_index" of a latent that
            was cut out of a batch), so that the cut keeps its seeds; by default 0, 1, 2, ...
    """
    return [(seed + index) % SEED_COUNT for index in (batch_index or range(batch_size))]


def batch_noise(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    """Gaussian noise of `shape` (B, C, H, W) whose image i depends on `seeds[i]` alone.

    Drawn in float32 on the CPU, so a seed means the same picture on every device, and from generators of
    its own, so the global RNG stays as it was. For one image it is bit for bit ComfyUI's noise of that seed.
    """
    return torch.cat(
        [torch.randn((1, *shape[1:]), generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    )
