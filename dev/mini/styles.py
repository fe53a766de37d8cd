"""Styles of pictures: how they look, apart from what they show, as amounts that a program can read back.

Every treatment is made of what fits into the autoencoder's sixteen channels: flat colour, slopes and edges. What covers
the picture repeats in each of the transformer's patches of 16x16 px. With another period, a patch would have to know to
a fraction of its width where in the picture it is, which a network of this size does not learn from FLUX's rotary
positions.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, replace

import numpy as np

REPEAT = 16  # px
GRAIN_CELL = 8  # px
GRAINS = np.array([[1.0, -0.6], [-0.9, 0.5]])
TREATMENTS = ("hatching", "grain", "outline", "soft_light")
MOST = {"palette": 0.5, "hatching": 0.3, "grain": 0.18, "outline": 0.05, "soft_light": 0.3}
"""What an amount of 1 does: share of the tint, darkening by a stroke, by a grain, width of an outline as a share of the
shorter side, darkening from the top of the picture to its bottom."""
APPEARANCE = len(TREATMENTS) + 4


@dataclass(frozen=True)
class Style:
    """Amounts in 0..1; `tint` is the RGB colour that the palette leans to. All 0 is plain."""

    tint: tuple[float, float, float] = (128.0, 128.0, 128.0)
    palette: float = 0.0
    hatching: float = 0.0
    grain: float = 0.0
    outline: float = 0.0
    soft_light: float = 0.0

    def scaled(self, factor: float) -> Style:
        """The same look with all amounts times a factor."""
        return replace(self, **{name: factor * getattr(self, name) for name in ("palette", *TREATMENTS)})


PLAIN = Style()


def appearance(style: Style) -> list[float]:
    """A style as APPEARANCE numbers: the treatments' amounts, the palette's, and its tint in -1..1 times that."""
    tint = [style.palette * (value / 127.5 - 1) for value in style.tint]
    return [*(getattr(style, name) for name in TREATMENTS), style.palette, *tint]


def random_style(rng: random.Random) -> Style:
    """A style of one to three treatments, a palette in most; now and then a plain one."""
    if rng.random() < 0.08:
        return PLAIN
    tint = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.35, 1.0))
    style = Style(tint=tuple(255 * value for value in tint))
    chosen = rng.sample(TREATMENTS, rng.choices((0, 1, 2), (0.3, 0.5, 0.2))[0])
    if rng.random() < 0.7 or not chosen:
        chosen.append("palette")
    return replace(style, **{name: rng.uniform(0.3, 1.0) for name in chosen})


def outline(picture: np.ndarray, distance: np.ndarray, style: Style, short: int) -> np.ndarray:
    """A picture (HxWx3, 0..255) with a dark line along the outside of a shape's outline; `distance` to it is in px."""
    if not style.outline:
        return picture
    half = MOST["outline"] * style.outline * short / 2
    line = np.clip(half + 0.5 - np.abs(distance - half), 0, 1)[..., None]
    return picture * (1 - line) + 18.0 * line


def strokes(height: int, width: int) -> np.ndarray:
    """The hatching of a picture of that size, HxW in 0..1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    return 0.5 - 0.5 * np.cos((x + y) * (2 * np.pi / REPEAT))


def grains(height: int, width: int) -> np.ndarray:
    """The grain of a picture of that size, HxW in -1..1."""
    tile = np.kron(GRAINS, np.ones((GRAIN_CELL, GRAIN_CELL)))
    return np.tile(tile, (-(-height // REPEAT), -(-width // REPEAT)))[:height, :width]


def finish(picture: np.ndarray, style: Style) -> np.ndarray:
    """A picture (HxWx3, 0..255) with the treatments that go over all of it."""
    height, width, _ = picture.shape
    if style.hatching:
        picture = picture * (1 - MOST["hatching"] * style.hatching * strokes(height, width)[..., None])
    if style.grain:
        # Unlike film's, the grains are alike all over: noise that nothing foretells is what a velocity field averages
        # away.
        picture = picture * (1 + MOST["grain"] * style.grain * grains(height, width)[..., None])
    if style.soft_light:
        # From above in every picture, so that a patch can know how bright it is before the others are settled.
        shade = MOST["soft_light"] * style.soft_light * (np.arange(height, dtype=np.float32) + 0.5) / height
        picture = picture * (1 - shade)[:, None, None]
    share = MOST["palette"] * style.palette
    return picture * (1 - share) + np.asarray(style.tint, np.float32) * share
