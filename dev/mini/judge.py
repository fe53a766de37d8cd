"""Says what a picture shows: background, shapes, colours, places. Rules about pixels; no model, no expectation.

A shape must be drawn, not hinted at: its outline has to match the shape's own within a narrow margin, so a blob
is "nothing" rather than the nearest of four.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from .pictures import COLOURS, SHAPES, signed_distance

# A wall in its own shadow or light is still the wall: its colour times a brightness in this range.
WALL_BRIGHTNESS = (0.66, 1.12)
CONTRAST = 36.0
SMALLEST_AREA = 0.004
BORDER = 5
# Least intersection over union with the ideal shape in the same frame; stars have far more outline per area.
LEAST_OVERLAP = {"circle": 0.94, "square": 0.93, "triangle": 0.89, "star": 0.82}
STRETCH = 0.12
LEAST_WALL = 0.9
APART = 0.15


@dataclass(frozen=True)
class Seen:
    """A shape in a picture. kind is None where no shape matches well enough; x, y, area as shares of the picture.

    overlap: intersection over union with the best ideal shape. purity: share of its inside near its median colour.
    """

    colour: str
    kind: str | None
    x: float
    y: float
    area: float
    overlap: float
    purity: float


@dataclass(frozen=True)
class View:
    """A whole picture: the wall's colour (None where the border is not one colour) and its shapes by area."""

    background: str | None
    shapes: tuple[Seen, ...]


@dataclass(frozen=True)
class Verdict:
    """What of a prompt came true. relation is None for a prompt without one."""

    background: bool
    colours: bool
    shapes: bool
    relation: bool | None

    @property
    def all(self) -> bool:
        """Everything is right."""
        return self.background and self.colours and self.shapes and self.relation is not False


def colour_name(rgb: np.ndarray) -> str:
    """The palette colour nearest to an RGB value in 0..255."""
    return min(COLOURS, key=lambda name: float(np.square(rgb - np.asarray(COLOURS[name])).sum()))


def _distance_to_wall(picture: np.ndarray, wall: np.ndarray) -> np.ndarray:
    """HxWx3 -> HxW distance in RGB to the wall's colour at its best brightness."""
    brightness = np.clip(picture @ wall / (wall @ wall), *WALL_BRIGHTNESS)
    return np.linalg.norm(picture - brightness[..., None] * wall, axis=-1)


def _crop(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache
def _ideal(kind: str) -> np.ndarray:
    span = np.linspace(-1.5, 1.5, 301)
    return _crop(signed_distance(kind, *np.meshgrid(span, span), 1.0) < 0)


def _overlap(mask: np.ndarray, kind: str) -> float:
    """Intersection over union of a mask with the shape in the mask's frame; 0 where the frame is out of shape."""
    ideal = _ideal(kind)
    (height, width), (ideal_height, ideal_width) = mask.shape, ideal.shape
    if abs(math.log(width * ideal_height / (height * ideal_width))) > math.log(1 + STRETCH):
        return 0.0
    y = ((np.arange(height) + 0.5) * ideal_height / height).astype(int)
    x = ((np.arange(width) + 0.5) * ideal_width / width).astype(int)
    ideal = ideal[np.ix_(y, x)]
    return float((mask & ideal).sum() / (mask | ideal).sum())


def _see(picture: np.ndarray, region: np.ndarray, distance: np.ndarray) -> Seen:
    height, width = region.shape
    core = ndimage.binary_erosion(region, iterations=3)
    core = core if core.sum() > 20 else region
    colour = np.median(picture[core], 0)
    # The outline lies where the colour is half way between the wall and the shape.
    edge = max(CONTRAST / 2, float(np.median(distance[core])) / 2)
    mask = ndimage.binary_fill_holes(ndimage.binary_dilation(region, iterations=2) & (distance > edge))
    labels, _ = ndimage.label(mask)
    mask = labels == np.bincount(labels[region & mask]).argmax()
    overlaps = {kind: _overlap(_crop(mask), kind) for kind in SHAPES}
    best = max(overlaps, key=overlaps.get)
    y, x = ndimage.center_of_mass(mask)
    return Seen(
        colour=colour_name(colour),
        kind=best if overlaps[best] >= LEAST_OVERLAP[best] else None,
        x=float(x / width),
        y=float(y / height),
        area=float(mask.mean()),
        overlap=overlaps[best],
        purity=float((np.linalg.norm(picture[core] - colour, axis=-1) < 40).mean()),
    )


def view(picture: np.ndarray) -> View:
    """What a picture (HxWx3 uint8) shows."""
    picture = picture.astype(np.float64)
    border = np.ones(picture.shape[:2], bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    wall = np.median(picture[border], 0)
    distance = _distance_to_wall(picture, wall)
    plain = float((distance[border] < CONTRAST).mean()) >= LEAST_WALL
    regions, count = ndimage.label(ndimage.binary_opening(distance > CONTRAST, iterations=2))
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    chosen = [index + 1 for index in np.argsort(-areas) if areas[index] >= SMALLEST_AREA * distance.size]
    shapes = [_see(picture, regions == label, distance) for label in chosen]
    return View(colour_name(wall) if plain else None, tuple(shapes))


def judge(
    picture: np.ndarray, background: str, objects: tuple[tuple[str, str], ...], relation: str | None = None
) -> Verdict:
    """Compare a picture with what was asked: one or two (colour, kind), the first `relation` the second.

    Anything too much counts against the colours: a second shape beside the one asked for is a wrong picture.
    """
    seen = view(picture)
    right_background = seen.background == background
    if len(seen.shapes) != len(objects):
        return Verdict(right_background, False, False, None if relation is None else False)
    # Which of two shapes is the first one is settled by colour, and where that fails by place.
    order = list(seen.shapes)
    if len(order) == 2:
        order.sort(key=lambda shape: (shape.colour != objects[0][0], shape.colour == objects[1][0]))
    colours = all(shape.colour == colour for shape, (colour, _) in zip(order, objects, strict=True))
    shapes = all(shape.kind == kind for shape, (_, kind) in zip(order, objects, strict=True))
    if relation is None:
        return Verdict(right_background, colours, shapes, None)
    across, down = order[0].x - order[1].x, order[0].y - order[1].y
    stands = {"above": down < -APART, "below": down > APART, "left": across < -APART, "right": across > APART}
    return Verdict(right_background, colours, shapes, bool(stands[relation]))
