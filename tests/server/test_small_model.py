"""What krea-mini can do, through the shipped workflow on a real ComfyUI: the bounds that its card states."""

import pytest

from dev import small_model
from dev.mini.evaluate import autoencoder, following, guidance_effect
from dev.mini.prompts import held_out_prompts


@pytest.fixture(scope="module")
def followed(server):
    """Figures for 30 held-out prompts of one subject and 30 of two, in three aspect ratios."""
    return following(server, held_out_prompts(30, 30))


@pytest.mark.parametrize("part", ["background", "colours", "shapes"])
def test_one_subject(followed, part):
    assert followed["one subject"]["prompts"] == 30
    assert followed["one subject"][part] >= 0.9


@pytest.mark.parametrize(("part", "bound"), [("background", 0.9), ("colours", 0.9), ("relation", 0.9), ("shapes", 0.6)])
def test_two_subjects(followed, part, bound):
    assert followed["two subjects"]["prompts"] == 30
    assert followed["two subjects"][part] >= bound


def test_more_guidance_makes_more_contrast(server):
    assert guidance_effect(server, held_out_prompts(4, 4))["more contrast at the highest"] >= 0.9


def test_autoencoder(server):
    assert autoencoder(server, server.input_dir, small_model.VAE, count=8)["mean dB"] >= 33
