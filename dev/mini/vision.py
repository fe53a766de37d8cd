"""The small SigLIP-shaped vision encoder and the Redux adapter of krea-mini: a reference picture as text tokens."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from krea.style import pool_tokens

from .text import T5_WIDTH

SIDE = 96
PATCH = 8
GRID = SIDE // PATCH
CONFIG = SiglipVisionConfig(
    hidden_size=72,
    intermediate_size=144,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=SIDE,
    patch_size=PATCH,
    vision_use_head=False,
)


class Vision(nn.Module):
    """SigLIP and Redux's two layers: pictures -> GRIDxGRID tokens as wide as the T5's."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.siglip = SiglipVisionModel(CONFIG)
        self.redux_up = nn.Linear(CONFIG.hidden_size, 3 * T5_WIDTH)
        self.redux_down = nn.Linear(3 * T5_WIDTH, T5_WIDTH)
        for name, weight in self.named_parameters():
            if weight.ndim >= 2:
                gain = 0.5 if "out_proj" in name or "fc2" in name else 1.0
                nn.init.normal_(weight, 0, gain / math.sqrt(weight[0].numel()), generator=generator)
            elif "norm" not in name:
                nn.init.zeros_(weight)

    def forward(self, pictures: Tensor) -> Tensor:
        """Bx3xSIDExSIDE uint8 -> Bx(GRID*GRID)x64."""
        tokens = self.siglip(pixel_values=pictures.float() / 127.5 - 1).last_hidden_state
        return self.redux_down(F.silu(self.redux_up(tokens)))


def encoder_view(picture: np.ndarray) -> np.ndarray:
    """A square picture (SxSx3 uint8) at the encoder's size, as ComfyUI makes it: 3xSIDExSIDE uint8."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", antialias=True)
    return small[0].round().clamp(0, 255).byte().numpy()


def coarser(tokens: Tensor, side: int) -> tuple[Tensor, float]:
    """(Bx(side*side)x64 tokens on a coarser grid, the key bias that keeps their attention mass)."""
    whole = torch.ones(GRID, GRID)
    grids = tokens.unflatten(1, (GRID, GRID))
    return torch.stack([pool_tokens(grid, whole, side) for grid in grids]), math.log((GRID / side) ** 2)


def export(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A Vision's weights as those of the two published files: SigLIP's, Redux's."""
    siglip = {
        f"vision_model.{name.removeprefix('siglip.')}": value
        for name, value in state.items()
        if name.startswith("siglip.")
    }
    return siglip, {name: value for name, value in state.items() if name.startswith("redux_")}
