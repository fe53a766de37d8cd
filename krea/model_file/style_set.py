"""The two files of a style model, checked one by one and against each other; their sizes, read from tensor shapes."""

import math
import os
from typing import NamedTuple

from .catalogue import Slot
from .header import DOWNLOAD_AGAIN, Header, ModelFileError, attention_heads
from .identify import expect, expected_files
from .kinds import REDUX_DOWN, REDUX_UP, SIGLIP_LAYER, SIGLIP_PATCH, SIGLIP_POSITIONS, Weights

_SIGLIP_HEAD_WIDTHS = 72, 64  # so400m; base and large
# Published SigLIP of 27x27 patches of 14 px looks at 384 px, 6 more than the patches cover.
_IMAGE_SIZES = {(27, 14): 384}


class StyleSizes(NamedTuple):
    """Sizes of a vision encoder and its adapter. grid: tokens per side of a picture of image_size px."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    patch_size: int
    image_size: int
    grid: int
    text_width: int


def check_style_set(vision_encoder: str, adapter: str) -> StyleSizes:
    """Read both headers and check that they are the right files and fit together.

    Raises:
        ModelFileError: every file that is wrong, one per line; else that their sizes do not fit.
    """
    errors, headers = [], []
    for path, slot in ((vision_encoder, Slot.VISION), (adapter, Slot.REDUX)):
        try:
            headers.append(expect(path, slot)[0])
        except ModelFileError as error:
            errors.append(str(error))
    if errors:
        raise ModelFileError("\n".join(errors))
    sizes = _sizes(*headers)
    wanted = Weights(headers[1].tensors).size(REDUX_UP, 1)
    if sizes.hidden_size != wanted:
        raise ModelFileError(
            f"{os.path.basename(vision_encoder)} gives tokens of width {sizes.hidden_size}, but"
            f" {os.path.basename(adapter)} takes {wanted}. For FLUX.1 Redux [dev]: {expected_files(Slot.VISION)}"
        )
    up, down = (Weights(headers[1].tensors)[name].shape for name in (REDUX_UP, REDUX_DOWN))
    if (len(up), len(down)) != (2, 2) or up[0] != down[1] or up[0] != 3 * down[0]:
        raise ModelFileError(
            f"{os.path.basename(adapter)} has layers of {list(up)} and {list(down)}, which do not follow each other. "
            f"{expected_files(Slot.REDUX)}"
        )
    return sizes


def _sizes(vision: Header, adapter: Header) -> StyleSizes:
    """Raises ModelFileError: the sizes are not those of any vision encoder."""
    weights = Weights(vision.tensors)
    hidden, patch = weights.size(SIGLIP_PATCH, 0), weights.size(SIGLIP_PATCH, 2)
    grid = math.isqrt(weights.size(SIGLIP_POSITIONS, 0))
    heads = attention_heads(vision, "The vision encoder", hidden, *_SIGLIP_HEAD_WIDTHS)
    if not grid or grid * grid != weights.size(SIGLIP_POSITIONS, 0):
        raise ModelFileError(
            f"The vision encoder has {weights.size(SIGLIP_POSITIONS, 0)} positions, which make no square of patches. "
            + DOWNLOAD_AGAIN
        )
    return StyleSizes(
        hidden_size=hidden,
        intermediate_size=weights.size(f"{SIGLIP_LAYER}0.mlp.fc1.weight", 0),
        num_attention_heads=heads,
        num_hidden_layers=weights.count(SIGLIP_LAYER),
        patch_size=patch,
        image_size=_IMAGE_SIZES.get((grid, patch), grid * patch),
        grid=grid,
        text_width=Weights(adapter.tensors).size(REDUX_DOWN, 0),
    )
