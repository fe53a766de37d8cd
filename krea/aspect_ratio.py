"""Picture sizes: the model's aspect ratios and resolutions, and the rule behind them for any other ratio.

"1K" is the area of a 1024-px square; one megapixel is that same area, 1024 * 1024 px, as in ComfyUI.
"""

import re
from fractions import Fraction
from math import ceil, floor, sqrt
from typing import NamedTuple

CUSTOM = "custom"
MULTIPLE = 16  # px: the autoencoder's 8 times the transformer's 2x2 patch
LARGEST_SIDE = 16384  # px, as in ComfyUI
SQUARE_SIDES = {"1K": 1024, "1.5K": 1536}  # px: the square whose area each resolution has
FOUR_K = "4K"  # rendered at 1K, then enlarged four times per side
FOUR_K_UPSCALE = 4
RESOLUTIONS = (*SQUARE_SIDES, FOUR_K)
DEFAULT_RATIO = "3:2"
DEFAULT_RESOLUTION = "1.5K"


class Size(NamedTuple):
    """Width and height in px, both multiples of 16."""

    width: int
    height: int

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1024**2


class Preset(NamedTuple):
    """An aspect ratio with its size at each resolution that is rendered directly."""

    sizes: dict[str, Size]
    meant_for: str


def _preset(at_1k: tuple[int, int], at_1_5k: tuple[int, int], meant_for: str) -> Preset:
    return Preset({"1K": Size(*at_1k), "1.5K": Size(*at_1_5k)}, meant_for)


PRESETS = {
    "1:1": _preset((1024, 1024), (1536, 1536), "social media"),
    "4:3": _preset((1168, 880), (1776, 1328), "classic photography"),
    "3:2": _preset((1248, 832), (1872, 1248), "professional camera"),
    "16:9": _preset((1360, 768), (2048, 1152), "widescreen, video"),
    "2.35:1": _preset((1584, 672), (2368, 1008), "cinematic"),
    "4:5": _preset((912, 1136), (1376, 1712), "Instagram portrait"),
    "2:3": _preset((832, 1248), (1248, 1872), "portrait photography"),
    "9:16": _preset((768, 1360), (1152, 2048), "mobile, stories"),
}


class Frame(NamedTuple):
    """What is rendered, and how much it is enlarged per side afterwards (1 or 4)."""

    size: Size
    upscale_factor: int

    @property
    def final_size(self) -> Size:
        return Size(self.size.width * self.upscale_factor, self.size.height * self.upscale_factor)


def parse_ratio(text: str) -> Fraction:
    """Read "21:9", "21x9", "2.39:1", "2.39" or "1920/1080" as width divided by height.

    Raises ValueError when the text is none of these or a side is zero.
    """
    number = r"(\d{1,5}(?:\.\d{1,4})?)"
    match = re.fullmatch(rf"\s*{number}\s*(?:[:x×/]\s*{number})?\s*", text, re.IGNORECASE | re.ASCII)
    width, height = (Fraction(side or 1) for side in match.groups()) if match else (0, 0)
    if not width or not height:
        raise ValueError(
            f"The custom ratio is {text!r}. Expected width:height with both above zero, "
            'for example "21:9", "2.39:1" or "1.85".'
        )
    return Fraction(width, height)


def nearest_size(ratio: Fraction | float, megapixels: float) -> Size:
    """The size in multiples of 16 px that is nearest to a ratio (width / height) and an area.

    The short side is rounded first, then the long side follows from the ratio, so the ratio stays true
    and the area gives way; where two long sides are equally near, the area decides. Every size of
    `PRESETS` follows this rule.

    Raises ValueError when the area is not in (0, 256] megapixels, or a side would be above 16384 px.
    """
    ratio = Fraction(ratio)
    if not 0 < megapixels <= LARGEST_SIDE**2 / 1024**2:
        raise ValueError(f"The picture's area is {megapixels} megapixels. Expected above 0, at most 256.")
    area = megapixels * 1024**2
    elongation = max(ratio, 1 / ratio)
    short = max(1, round(sqrt(area / elongation) / MULTIPLE)) * MULTIPLE
    exact = short * elongation
    candidates = (floor(exact / MULTIPLE) * MULTIPLE, ceil(exact / MULTIPLE) * MULTIPLE)
    long = min(candidates, key=lambda side: (abs(side - exact), abs(side * short - area)))
    size = Size(long, short) if ratio >= 1 else Size(short, long)
    if long > LARGEST_SIDE:
        raise ValueError(
            f"A picture of ratio {float(ratio):.4g}:1 and {megapixels:g} megapixels would be "
            f"{size.width} x {size.height} px. Expected at most {LARGEST_SIDE} px a side: "
            "choose a ratio nearer to 1:1 or a smaller area."
        )
    return size


def frame(
    aspect_ratio: str = DEFAULT_RATIO,
    resolution: str = DEFAULT_RESOLUTION,
    *,
    swap_sides: bool = False,
    custom_ratio: str = "1:1",
    custom_megapixels: float = 1.0,
    picture: tuple[int, int] | None = None,
) -> Frame:
    """The size to render for the settings of the aspect-ratio node.

    aspect_ratio: a key of `PRESETS`, or "custom" for `custom_ratio` (see `parse_ratio`).
    resolution: one of `RESOLUTIONS`, or "custom" for `custom_megapixels` (1 is 1024 * 1024 px).
    swap_sides: width becomes height: 3:2 becomes 2:3.
    picture: width and height in px of a picture whose ratio is taken instead of `aspect_ratio`.

    Raises ValueError for an unknown ratio or resolution, and as `parse_ratio` and `nearest_size` do.
    """
    if aspect_ratio not in PRESETS and aspect_ratio != CUSTOM:
        raise ValueError(f"The aspect ratio is {aspect_ratio!r}. Expected {', '.join(PRESETS)} or {CUSTOM}.")
    if resolution not in RESOLUTIONS and resolution != CUSTOM:
        raise ValueError(f"The resolution is {resolution!r}. Expected {', '.join(RESOLUTIONS)} or {CUSTOM}.")

    rendered = "1K" if resolution == FOUR_K else resolution
    if picture is None and aspect_ratio != CUSTOM and rendered != CUSTOM:
        size = PRESETS[aspect_ratio].sizes[rendered]
    else:
        ratio = Fraction(*picture) if picture else parse_ratio(custom_ratio if aspect_ratio == CUSTOM else aspect_ratio)
        square = SQUARE_SIDES.get(rendered)
        size = nearest_size(ratio, square**2 / 1024**2 if square else custom_megapixels)
    if swap_sides:
        size = Size(size.height, size.width)
    return Frame(size, FOUR_K_UPSCALE if resolution == FOUR_K else 1)
