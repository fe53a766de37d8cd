"""One seed per image: image i of a batch is the image that seed + i makes alone."""

from collections.abc import Sequence

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
