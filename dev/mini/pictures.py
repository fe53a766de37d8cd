"""Scenes of one or two coloured shapes, and the pictures drawn from them.

The layout follows from the scene alone (low entropy): what a caption does not say varies little, and only in
smooth ways (light, a breath of colour), so that a very small network can learn to draw clean edges.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from .styles import PLAIN, Style, finish, outline

COLOURS = {
    "red": (214, 40, 44),
    "green": (40, 158, 74),
    "blue": (42, 86, 210),
    "yellow": (246, 214, 52),
    "orange": (244, 130, 28),
    "purple": (132, 58, 182),
    "white": (246, 245, 241),
    "black": (26, 26, 30),
}
SHAPES = ("circle", "square", "triangle", "star")
OPPOSITE = {"above": "below", "below": "above", "left": "right", "right": "left"}
PLACES = {"centre": (0.5, 0.5), "left": (0.26, 0.5), "right": (0.74, 0.5), "top": (0.5, 0.28), "bottom": (0.5, 0.72)}
# Radius of a shape as a share of the picture's shorter side.
RADII = {"small": 0.2, "": 0.34, "large": 0.42}
PLACED_RADIUS = 0.24
# Of each half of the picture, as a share of the shorter side of that half.
PAIR_RADIUS = 0.4
PAIR_OFFSET = 0.245
# (width, height) with the share of pictures: 1:1, 3:2 and 2:3 near 256 * 256 px, as the aspect-ratio node makes them.
SQUARE = (256, 256)
SIZES = {SQUARE: 0.36, (320, 208): 0.32, (208, 320): 0.32}


@dataclass(frozen=True)
class Shape:
    """One coloured shape; x, y as shares of width and height, radius as a share of the shorter side."""

    colour: str
    kind: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `relation` says where shapes[0] is, seen from shapes[1]; None for a single shape."""

    width: int
    height: int
    background: str
    shapes: tuple[Shape, ...]
    relation: str | None
    size_word: str
    place: str
    light: tuple[float, float]
    tint: tuple[float, ...]
    style: Style = PLAIN


def held_out(colour: str, kind: str, background: str) -> bool:
    """True for the (colour, shape, background) combinations that training never draws.

    A Latin-square rule: every pair of the three still occurs in training, with the third one different.
    """
    names = list(COLOURS)
    return (names.index(colour) + 3 * SHAPES.index(kind) + 5 * names.index(background)) % 8 == 0


def held_out_combinations() -> list[tuple[str, str, str]]:
    """All (colour, shape, background) combinations kept for evaluation."""
    return [
        (colour, kind, background)
        for colour in COLOURS
        for kind in SHAPES
        for background in COLOURS
        if colour != background and held_out(colour, kind, background)
    ]


def _variation(rng: random.Random) -> dict:
    return {
        "light": (rng.uniform(-1, 1), rng.uniform(-1, 1)),
        "tint": tuple(rng.uniform(-5, 5) for _ in range(3)),
    }


def single_scene(
    size: tuple[int, int],
    background: str,
    colour: str,
    kind: str,
    rng: random.Random,
    size_word: str = "",
    place: str = "centre",
) -> Scene:
    """A scene of one shape."""
    x, y = PLACES[place]
    radius = RADII[size_word] if place == "centre" or size_word == "small" else PLACED_RADIUS
    shape = Shape(colour, kind, x, y, radius)
    return Scene(*size, background, (shape,), None, size_word, place, **_variation(rng))


def pair_scene(
    size: tuple[int, int],
    background: str,
    first: tuple[str, str],
    relation: str,
    second: tuple[str, str],
    rng: random.Random,
) -> Scene:
    """A scene of two shapes, each a (colour, kind), the first `relation` the second."""
    sign = -1 if relation in ("above", "left") else 1
    vertical = relation in ("above", "below")
    width, height = size
    half = min(width, height / 2) if vertical else min(width / 2, height)
    radius = PAIR_RADIUS * half / min(size)
    shapes = []
    for (colour, kind), offset in ((first, sign * PAIR_OFFSET), (second, -sign * PAIR_OFFSET)):
        x, y = (0.5, 0.5 + offset) if vertical else (0.5 + offset, 0.5)
        shapes.append(Shape(colour, kind, x, y, radius))
    return Scene(*size, background, tuple(shapes), relation, "", "centre", **_variation(rng))


def random_scene(rng: random.Random, size: tuple[int, int] | None = None) -> Scene:
    """A random training scene: never a held-out combination, nor a shape in the background's colour."""
    size = size or rng.choices(list(SIZES), list(SIZES.values()))[0]
    while True:
        background = rng.choice(list(COLOURS))
        colours = rng.sample([name for name in COLOURS if name != background], 2)
        kinds = [rng.choice(SHAPES) for _ in range(2)]
        objects = list(zip(colours, kinds, strict=True))
        if rng.random() < 0.55:
            objects = objects[:1]
        if any(held_out(*one, background) for one in objects):
            continue
        if len(objects) == 2:
            return pair_scene(size, background, objects[0], rng.choice(list(OPPOSITE)), objects[1], rng)
        if rng.random() < 0.12:
            return single_scene(size, background, *objects[0], rng, place=rng.choice(list(PLACES)))
        size_word = rng.choices(list(RADII), [0.1, 0.8, 0.1])[0]
        return single_scene(size, background, *objects[0], rng, size_word=size_word)


def otherwise(scene: Scene, rng: random.Random) -> Scene:
    """What an image-to-image prompt may have begun from: a scene in other colours, or its wall alone; none held out."""
    if rng.random() < 0.25:
        return replace(scene, shapes=())
    while True:
        wall, *colours = rng.sample(list(COLOURS), 1 + len(scene.shapes))
        wall = scene.background if rng.random() < 0.5 else wall
        if wall in colours or any(held_out(c, s.kind, wall) for c, s in zip(colours, scene.shapes, strict=True)):
            continue
        shapes = tuple(replace(shape, colour=colour) for shape, colour in zip(scene.shapes, colours, strict=True))
        return replace(scene, background=wall, shapes=shapes)


def signed_distance(kind: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance in px to the outline of a shape round the origin, negative inside (exact near the edges)."""
    if kind == "circle":
        return np.hypot(x, y) - radius
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.87 * radius
    if kind == "triangle":
        # Distance to the farthest of the three sides of an equilateral triangle, a little below its centre.
        y = y - 0.2 * radius
        inner = 0.58 * radius
        return np.maximum(y, np.abs(x) * 0.8660254 - y * 0.5) - inner
    # Star: fold the plane into half of one of five points, then the distance to that point's one edge.
    sector = 2 * np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2)
    distance = np.hypot(x, y)
    tip, notch = 1.14 * radius, 0.5 * radius
    edge_x, edge_y = tip - notch * np.cos(sector / 2), notch * np.sin(sector / 2)
    length = np.hypot(edge_x, edge_y)
    return ((distance * np.cos(angle) - tip) * edge_y + distance * np.sin(angle) * edge_x) / length


def _coverage(distance: np.ndarray, softness: float) -> np.ndarray:
    """1 inside, 0 outside, a smooth ramp of `softness` px across the outline."""
    t = np.clip(0.5 - distance / softness, 0, 1)
    return t * t * (3 - 2 * t)


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene: paper-like shapes over a softly lit wall, HxWx3 uint8."""
    width, height = scene.width, scene.height
    short = min(width, height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5

    # The wall: brightest near the light, a few percent darker in the far corner.
    light_x, light_y = (0.5 + 0.3 * scene.light[0]) * width, (0.35 + 0.15 * scene.light[1]) * height
    falloff = ((x - light_x) ** 2 + (y - light_y) ** 2) / (width**2 + height**2)
    wall = np.asarray(COLOURS[scene.background], np.float32) + scene.tint[2]
    picture = wall * (1.03 - 0.16 * falloff)[..., None]

    for shape, own_tint in zip(scene.shapes, scene.tint, strict=False):
        left, top, radius = shape.x * width, shape.y * height, shape.radius * short
        drop = 0.045 * short
        shadow = _coverage(signed_distance(shape.kind, x - left, y - top - drop, radius), 0.12 * short)
        picture *= (1 - 0.17 * shadow)[..., None]
        face = np.asarray(COLOURS[shape.colour], np.float32) + own_tint
        face = face * (1 - 0.07 * np.clip((y - top) / radius, -1, 1))[..., None]
        distance = signed_distance(shape.kind, x - left, y - top, radius)
        picture += (face - picture) * _coverage(distance, 1.8)[..., None]
        picture = outline(picture, distance, scene.style, short)
    return np.clip(finish(picture, scene.style) + 0.5, 0, 255).astype(np.uint8)
