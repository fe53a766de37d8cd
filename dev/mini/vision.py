"""The small SigLIP-shaped vision encoder and the Redux adapter of krea-mini: a reference picture as text tokens.

They learn alone, to say what a picture shows in the words that the transformer knows. From the transformer's own loss
they learned colours and nothing else: what a reference changes in a velocity is too faint a hint of what it shows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from krea.style import pool_tokens

from .styles import APPEARANCE
from .text import T5_WIDTH

SIDE = 96
PATCH = 8
GRID = SIDE // PATCH
# What the tokens are to say: on the left, row for row, the words of a caption; on the right how the picture looks.
WORDS = 18
WORD_COLUMNS = 9
LOUDNESS = 9.0  # of a style's amounts, beside a T5 token's norm of about 7
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
        with torch.no_grad():
            self.siglip.embeddings.position_embedding.weight.copy_(positions())

    def adapt(self, pictures: Tensor) -> None:
        """Start the patches' embedding as their principal components in pictures (Nx3xSIDExSIDE uint8).

        Each comes with the root of its deviation: faint strokes and grain, which flat colour would drown, are learned
        from the first steps on, and colour still speaks loudest.
        """
        patches = F.unfold(pictures.float() / 127.5 - 1, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1).double()
        variance, vectors = torch.linalg.eigh(patches.T.cov())
        width = CONFIG.hidden_size
        basis = (vectors[:, -width:] / (variance[-width:] + 1e-4).sqrt().sqrt()).T
        embedding = self.siglip.embeddings.patch_embedding
        with torch.no_grad():
            embedding.weight.copy_(basis.view(embedding.weight.shape))
            embedding.bias.copy_(-basis @ patches.mean(0))

    def matrices(self) -> list[nn.Parameter]:
        """The layers' matrices: what Muon trains."""
        return [weight for name, weight in self.named_parameters() if weight.ndim == 2 and "position" not in name]

    def forward(self, pictures: Tensor) -> Tensor:
        """Bx3xSIDExSIDE uint8 -> Bx(GRID*GRID)x64."""
        tokens = self.siglip(pixel_values=pictures.float() / 127.5 - 1).last_hidden_state
        return self.redux_down(F.silu(self.redux_up(tokens)))


def positions() -> Tensor:
    """(GRID*GRID)xwidth: sines and cosines of the two coordinates, as loud as the patches beside them."""
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    frequencies = 0.6 * math.pi / GRID * torch.arange(1, CONFIG.hidden_size // 4 + 1)
    angles = [place.flatten()[:, None] * frequencies for place in (x, y)]
    return 0.7 * torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], 1)


def sentence(words: Tensor, appearances: Tensor) -> Tensor:
    """What the tokens of pictures are to be, Nx(GRID*GRID)x64, so that a transformer that knows words can read them.

    words: NxWORDSx64, what the T5 makes of each picture's caption; appearances: NxAPPEARANCE (see styles.appearance).
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(T5_WIDTH, APPEARANCE, generator=generator))[0].T
    said = words.unflatten(1, (-1, WORD_COLUMNS)).repeat(1, GRID * WORD_COLUMNS // WORDS, 1, 1)
    looks = LOUDNESS * appearances @ directions
    return torch.cat([said, looks[:, None, None].expand(-1, GRID, GRID - WORD_COLUMNS, -1)], 2).flatten(1, 2)


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
