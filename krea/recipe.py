"""The FLUX.1 Krea [dev] recipe: the settings that the model was made for, with their ranges.

Source: github.com/krea-ai/flux-krea (README and inference.py: guidance 3.5-5.0, 4.5 by default, 28-32 steps).
"""

from typing import NamedTuple


class Setting(NamedTuple):
    """A number with its default and the range in which it means something."""

    default: float
    minimum: float
    maximum: float


GUIDANCE = Setting(4.5, 1.0, 10.0)
STEPS = Setting(28, 15, 50)
TRUE_CFG = Setting(1.0, 1.0, 10.0)  # 1 is off: one forward pass per step
BATCH_SIZE = Setting(1, 1, 4)
SAMPLER = "euler"

REFERENCES = 3  # reference pictures at most
STYLE_WEIGHT = Setting(0.7, 0.0, 1.0)  # 0.1 to 1.0 of each reference, by their ratios; 0 leaves one out
LEAST_STYLE_WEIGHT = 0.1  # of a reference that takes part
STYLE_STRENGTH = Setting(0.5, 0.0, 1.0)
STYLE_DETAIL = Setting(9, 1, 32)  # tokens per side of a reference: 27 are all of SigLIP at 384 px, 32 at 512 px

T5_TOKENS = 512  # what the model was trained on; ComfyUI pads to 256
