"""The judge of krea-mini's pictures: right pictures pass, and each way to be wrong is caught."""

import random
from dataclasses import replace

import numpy as np
import pytest

from dev.mini.judge import judge, view
from dev.mini.pictures import COLOURS, SHAPES, SIZES, draw, pair_scene, random_scene, single_scene

SQUARE = (256, 256)


def single(colour="red", kind="circle", background="blue", size=SQUARE):
    return single_scene(size, background, colour, kind, random.Random(0))


def verdict_of(scene, background="blue", objects=(("red", "circle"),), relation=None):
    return judge(draw(scene), background, objects, relation)


def painted(mask, colour="red", background="blue"):
    """A picture of any mask, for shapes that no scene can draw."""
    picture = np.empty((*mask.shape, 3), np.uint8)
    picture[:] = COLOURS[background]
    picture[mask] = COLOURS[colour]
    return picture


def plane():
    y, x = np.mgrid[0:256, 0:256] - 127.5
    return x, y


def test_right_pictures_pass():
    rng = random.Random(11)
    for _ in range(60):
        scene = random_scene(rng)
        objects = tuple((shape.colour, shape.kind) for shape in scene.shapes)
        assert judge(draw(scene), scene.background, objects, scene.relation).all, scene


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_is_told_from_every_other(kind, size):
    scene = single(kind=kind, size=size)
    for asked in SHAPES:
        assert verdict_of(scene, objects=(("red", asked),)).shapes == (asked == kind)


@pytest.mark.parametrize("colour", [name for name in COLOURS if name != "blue"])
def test_every_colour_is_told_from_every_other(colour):
    scene = single(colour=colour)
    for asked in COLOURS:
        assert verdict_of(scene, objects=((asked, "circle"),)).colours == (asked == colour)


@pytest.mark.parametrize("background", [name for name in COLOURS if name != "red"])
def test_every_background_is_told_from_every_other(background):
    scene = single(background=background)
    for asked in COLOURS:
        assert verdict_of(scene, background=asked).background == (asked == background)


@pytest.mark.parametrize("relation", ["above", "below", "left", "right"])
def test_a_relation_is_told_from_the_others(relation):
    things = (("red", "circle"), ("white", "star"))
    scene = pair_scene(SQUARE, "blue", things[0], relation, things[1], random.Random(0))
    for asked in ("above", "below", "left", "right"):
        verdict = verdict_of(scene, objects=things, relation=asked)
        assert verdict.relation == (asked == relation)
        assert verdict.all == (asked == relation)


def test_swapped_colours_of_two_shapes_are_caught():
    scene = pair_scene(SQUARE, "blue", ("white", "circle"), "above", ("red", "star"), random.Random(0))
    verdict = verdict_of(scene, objects=(("red", "circle"), ("white", "star")), relation="above")
    assert not verdict.all


def test_a_shape_too_many_and_a_shape_too_few_are_caught():
    things = (("red", "circle"), ("white", "star"))
    pair = pair_scene(SQUARE, "blue", things[0], "above", things[1], random.Random(0))
    assert not verdict_of(pair).colours
    assert not verdict_of(single(), objects=things, relation="above").all
    assert not verdict_of(replace(single(), shapes=())).all


@pytest.mark.parametrize("lobes", [2, 3, 5, 7])
def test_a_lumpy_circle_is_no_circle(lobes):
    x, y = plane()
    radius = 68 * (1 + 0.08 * np.cos(lobes * np.arctan2(y, x)))
    assert view(painted(np.hypot(x, y) < radius)).shapes[0].kind is None


def test_a_rounded_square_is_neither_square_nor_circle():
    x, y = plane()
    assert view(painted(np.abs(x) ** 3 + np.abs(y) ** 3 < 65**3)).shapes[0].kind is None


def test_a_square_with_a_bite_and_an_ellipse_are_nothing():
    x, y = plane()
    square = np.maximum(np.abs(x), np.abs(y)) < 60
    assert view(painted(square)).shapes[0].kind == "square"
    assert view(painted(square & (np.hypot(x - 60, y - 60) > 45))).shapes[0].kind is None
    assert view(painted(np.hypot(x / 1.5, y) < 50)).shapes[0].kind is None


def test_a_star_without_points_is_no_star():
    x, y = plane()
    radius = 60 * (1 + 0.12 * np.cos(5 * np.arctan2(x, -y)))
    assert view(painted(np.hypot(x, y) < radius)).shapes[0].kind != "star"


def test_a_background_of_two_colours_is_no_background():
    picture = draw(single())
    picture[:, :100] = COLOURS["green"]
    assert view(picture).background is None


def test_an_empty_wall_has_no_shapes():
    assert view(draw(replace(single(), shapes=()))).shapes == ()
