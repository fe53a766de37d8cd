"""Styles of pictures: how they look, apart from what they show, as amounts that a program can read back.

Every treatment is made of what fits into the autoencoder's sixteen channels: flat colour, slopes and edges.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, replace

import numpy as np

HATCHING_PERIOD = 24  # px across the strokes
GRAIN_CELL = 8  # px
TREATMENTS = ("hatching", "grain", "outline", "soft_light")
MOST = {"palette": 0.5, "hatching": 0.3, "grain": 0.14, "outline": 0.044, "soft_light": 0.5}
"""What an amount of 1 does: share of the tint, darkening by a stroke, by a grain, width of an outline as a share of the
shorter side, darkening over the length of the diagonal."""
PLAIN_FALLOFF = 0.16
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


def light_falloff(style: Style) -> float:
    """How much darker the wall is at a distance from the light as long as the picture's diagonal."""
    return PLAIN_FALLOFF + MOST["soft_light"] * style.soft_light


def outline(picture: np.ndarray, distance: np.ndarray, style: Style, short: int) -> np.ndarray:
    """A picture (HxWx3, 0..255) with a dark line along the outside of a shape's outline; `distance` to it is in px."""
    if not style.outline:
        return picture
    half = MOST["outline"] * style.outline * short / 2
    line = np.clip(half + 0.5 - np.abs(distance - half), 0, 1)[..., None]
    return picture * (1 - line) + 18.0 * line


def finish(picture: np.ndarray, style: Style) -> np.ndarray:
    """A picture (HxWx3, 0..255) with the treatments that go over all of it."""
    height, width, _ = picture.shape
    if style.hatching:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
        stroke = 0.5 - 0.5 * np.cos((x + y) * (2 * np.pi / (HATCHING_PERIOD * 2**0.5)))
        picture = picture * (1 - MOST["hatching"] * style.hatching * stroke[..., None])
    if style.grain:
        # Unlike film's, the grains are at the same places in every picture: noise that nothing foretells is what a
        # velocity field averages away.
        shape = (-(-height // GRAIN_CELL), -(-width // GRAIN_CELL))
        cells = np.random.default_rng(0).uniform(-1, 1, (64, 64))[: shape[0], : shape[1]]
        grains = np.kron(cells, np.ones((GRAIN_CELL, GRAIN_CELL)))[:height, :width, None]
        picture = picture * (1 + MOST["grain"] * style.grain * grains)
    share = MOST["palette"] * style.palette
    return picture * (1 - share) + np.asarray(style.tint, np.float32) * share
