"""Starting noise, of which each image's part depends on its own seed alone (see `krea.seeds`)."""

from collections.abc import Sequence

import torch


def batch_noise(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    """Gaussian noise of `shape` (B, C, H, W) whose image i depends on `seeds[i]` alone.

    Drawn in float32 on the CPU, so a seed means the same picture on every device, and from generators of
    its own, so the global RNG stays as it was. For one image it is bit for bit ComfyUI's noise of that seed.
    """
    return torch.cat(
        [torch.randn((1, *shape[1:]), generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    )
