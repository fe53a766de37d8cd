"""Styles of krea-mini's training pictures: a program tells them apart, and a plain picture is what it always was."""

import random
from dataclasses import replace

import numpy as np
import pytest

from dev.mini.judge import view
from dev.mini.pictures import SQUARE, draw, single_scene
from dev.mini.style_judge import amounts, palette
from dev.mini.styles import MOST, PLAIN, TREATMENTS, Style, random_style


def picture(style: Style, wall: str = "purple", colour: str = "orange", kind: str = "circle") -> np.ndarray:
    scene = single_scene(SQUARE, wall, colour, kind, random.Random(3))
    return draw(replace(scene, style=style))


def test_the_same_seed_gives_the_same_style():
    assert random_style(random.Random(4)) == random_style(random.Random(4)) != random_style(random.Random(5))


def test_styles_have_amounts_up_to_one():
    rng = random.Random(0)
    styles = [random_style(rng) for _ in range(300)]
    for name in (*TREATMENTS, "palette"):
        values = [getattr(style, name) for style in styles]
        assert 0.9 < max(values) <= 1 and min(values) == 0
    assert 10 < styles.count(PLAIN) < 50


@pytest.mark.parametrize("kind", ["circle", "square", "triangle"])  # stars reach into the strips of wall
@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_a_treatment_is_read_back_and_no_other_is_seen(treatment, amount, kind):
    seen = amounts(picture(replace(PLAIN, **{treatment: amount}), kind=kind))
    assert seen.pop(treatment) == pytest.approx(amount, abs=0.25)
    assert all(abs(other) < 0.3 for other in seen.values()), seen


def test_the_palette_moves_the_wall_to_the_tint():
    tint = (40.0, 160.0, 150.0)
    plain, tinted = palette(picture(PLAIN)), palette(picture(Style(tint=tint, palette=1.0)))
    assert tinted == pytest.approx(plain * (1 - MOST["palette"]) + np.asarray(tint) * MOST["palette"], abs=2)


def test_a_style_changes_how_a_picture_looks_and_nothing_of_what_it_shows():
    plain = picture(PLAIN)
    (before,) = view(plain).shapes
    for style in (
        Style(hatching=1.0),
        Style(grain=1.0),
        Style(soft_light=1.0),
        Style((200.0, 90.0, 60.0), palette=0.5),
    ):
        styled = picture(style)
        assert np.abs(styled.astype(int) - plain).max() > 20
        (after,) = view(styled).shapes
        assert after.kind == before.kind
        assert (after.x, after.y) == pytest.approx((before.x, before.y), abs=0.01)
