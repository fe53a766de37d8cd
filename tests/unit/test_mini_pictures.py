"""Training pictures and captions of krea-mini: nothing held out is ever drawn, captions are true, seeds decide all."""

import random
from dataclasses import replace

import numpy as np
import pytest

from dev.mini.captions import caption, tail
from dev.mini.pictures import (
    COLOURS,
    SHAPES,
    SIZES,
    draw,
    held_out,
    held_out_combinations,
    otherwise,
    random_scene,
)
from dev.mini.prompts import RATIOS, held_out_prompts


def scenes(count: int, seed: int = 5) -> list:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def test_no_held_out_combination_is_ever_drawn():
    drawn = {(shape.colour, shape.kind, scene.background) for scene in scenes(6000) for shape in scene.shapes}
    held = set(held_out_combinations())
    possible = {(c, k, b) for c in COLOURS for k in SHAPES for b in COLOURS if c != b}
    assert drawn == possible - held
    assert len(held) > 20


def test_other_scenes_to_begin_from_have_other_colours_or_no_shapes_and_nothing_held_out():
    rng = random.Random(1)
    emptied = walls = 0
    for scene in scenes(400):
        other = otherwise(scene, rng)
        walls += other.background == scene.background
        emptied += not other.shapes
        assert replace(other, background="", shapes=()) == replace(scene, background="", shapes=())
        for old, new in zip(scene.shapes, other.shapes, strict=False):
            assert replace(new, colour=old.colour) == old
            assert new.colour != other.background and not held_out(new.colour, new.kind, other.background)
    assert 60 < emptied < 140 and 180 < walls < 360


def test_every_pair_of_a_held_out_combination_is_still_drawn():
    for colour, kind, background in held_out_combinations():
        assert any(not held_out(colour, kind, other) for other in COLOURS if other not in (colour, background))
        assert any(not held_out(colour, other, background) for other in SHAPES if other != kind)
        assert any(not held_out(other, kind, background) for other in COLOURS if other not in (colour, background))


def test_every_evaluation_prompt_holds_a_held_out_combination():
    prompts = held_out_prompts()
    assert len(prompts) >= 60
    assert {prompt.ratio for prompt in prompts} == set(RATIOS)
    assert len({(prompt.text, prompt.ratio) for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert any(held_out(*thing, prompt.background) for thing in prompt.objects)
        for word in (prompt.background, *(word for thing in prompt.objects for word in thing)):
            assert word in prompt.text


def test_a_scene_never_hides_a_shape_in_its_background():
    for scene in scenes(500):
        colours = [shape.colour for shape in scene.shapes]
        assert scene.background not in colours
        assert len(set(colours)) == len(colours)


def test_the_same_seed_draws_the_same_picture():
    first, again = (draw(scenes(1, seed=9)[0]) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, draw(scenes(1, seed=10)[0]))


@pytest.mark.parametrize("size", SIZES)
def test_pictures_have_the_size_asked_for(size):
    picture = draw(random_scene(random.Random(1), size))
    assert picture.shape == (size[1], size[0], 3)
    assert picture.dtype == np.uint8


def test_a_relation_in_a_caption_is_true():
    rng = random.Random(3)
    words = {" above ": "above", " below ": "below", " to the left of ": "left", " to the right of ": "right"}
    checked = 0
    for scene in scenes(400):
        text = caption(scene, rng).lower()
        phrase = next((phrase for phrase in words if phrase in text), None)
        named = [shape for shape in scene.shapes if f"{shape.colour} {shape.kind}" in text]
        if scene.relation is None or phrase is None or len(named) < 2:
            continue
        first, second = sorted(scene.shapes, key=lambda shape: text.index(f"{shape.colour} {shape.kind}"))
        true = {
            "above": first.y < second.y,
            "below": first.y > second.y,
            "left": first.x < second.x,
            "right": first.x > second.x,
        }
        assert true[words[phrase]], text
        checked += 1
    assert checked > 50


def test_some_captions_leave_the_colour_open():
    rng = random.Random(4)
    texts = [caption(scene, rng).lower() for scene in scenes(2000)]
    assert sum("circle on a white background" in text for text in texts) > 0
    open_ones = [text for text in texts if text.startswith(("a circle", "a square", "a triangle", "a star"))]
    assert len(open_ones) > 60


def test_the_tail_can_be_the_prompt_nodes_own_sentences():
    from krea.prompting import TEXTURE_ENHANCEMENT

    assert tail(True, 2, random.Random(0)).endswith(TEXTURE_ENHANCEMENT)
