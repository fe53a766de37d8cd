"""Prompt words: sentences that join what the artist wrote, in any language and however it ends."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea.prompting import CHOICES, NONE, TEXTURE_ENHANCEMENT, compose

FILM = CHOICES["film"]["Kodak Tri-X 400"]
SENTENCES = [sentence for choices in CHOICES.values() for sentence in choices.values()]


def with_film(prompt: str) -> str:
    return compose(prompt, film="Kodak Tri-X 400", texture_enhancement=False)


@given(st.text())
def test_nothing_chosen_leaves_the_prompt_as_it_is(prompt):
    assert compose(prompt, texture_enhancement=False) == prompt
    assert compose(prompt, texture_enhancement=False, **dict.fromkeys(CHOICES, NONE)) == prompt


@pytest.mark.parametrize(
    ("prompt", "closed"),
    [
        ("a red fox", "a red fox."),
        ("a red fox.", "a red fox."),
        ("a red fox, \n", "a red fox."),
        ("a red fox -", "a red fox."),
        ("Where is the fox?", "Where is the fox?"),
        ("A fox, waiting...", "A fox, waiting..."),
        ("A fox, waiting…", "A fox, waiting…"),
        ("a fox (Vulpes vulpes)", "a fox (Vulpes vulpes)."),
        ('a sign that says "OPEN"', 'a sign that says "OPEN".'),
        ('She says "Stop!"', 'She says "Stop!"'),
        ("A fox.\n\nSnow falls", "A fox.\n\nSnow falls."),
        ("  a fox", "  a fox."),
        ("一只红色的狐狸", "一只红色的狐狸。"),
        ("一只红色的狐狸，", "一只红色的狐狸。"),
        ("一只红色的狐狸。", "一只红色的狐狸。"),
        ("狐（赤）", "狐（赤）。"),
        ("キツネ", "キツネ。"),
        ("un zorro rojo", "un zorro rojo."),
        ("أين الثعلب؟", "أين الثعلب؟"),
        ("एक लाल लोमड़ी।", "एक लाल लोमड़ी।"),
        ("a fox 🦊", "a fox 🦊."),
    ],
)
def test_an_open_sentence_is_closed_before_the_next(prompt, closed):
    assert with_film(prompt) == f"{closed} {FILM}"


@pytest.mark.parametrize("prompt", ["", "  ", "\n", ",", " - "])
def test_an_empty_prompt_leaves_the_choices_alone(prompt):
    assert with_film(prompt) == FILM


def test_the_artists_words_come_first_and_the_texture_last():
    chosen = {name: next(iter(choices)) for name, choices in CHOICES.items()}
    sentences = [CHOICES[name][key] for name, key in chosen.items()]
    assert compose("a red fox", **chosen) == " ".join(["a red fox.", *sentences, TEXTURE_ENHANCEMENT])


def test_texture_enhancement_is_on_unless_told_otherwise():
    assert compose("a red fox") == f"a red fox. {TEXTURE_ENHANCEMENT}"
    for words in ("realistic texture", "light falls naturally", "unprocessed"):
        assert words in TEXTURE_ENHANCEMENT


@pytest.mark.parametrize("sentence", [*SENTENCES, TEXTURE_ENHANCEMENT])
def test_every_addition_is_prose(sentence):
    assert re.fullmatch(r"[A-Z][^()<>{}\[\]_:!]{30,}\.", sentence)
    assert "  " not in sentence
    for tag in ("masterpiece", "best quality", "8k", "uhd", "hdr", "ultra", "hyper", "award", "trending", "stunning"):
        assert not re.search(rf"\b{tag}", sentence, re.IGNORECASE), tag


def test_choices_are_few_and_say_different_things():
    assert list(CHOICES) == ["use_case", "camera", "film", "lighting", "composition"]
    assert all(6 <= len(choices) <= 10 for choices in CHOICES.values())
    assert len(set(SENTENCES)) == len(SENTENCES)


def test_keys_fit_a_menu_and_never_shadow_none():
    for key in (key for choices in CHOICES.values() for key in choices):
        assert key != NONE
        assert key == key.strip() and len(key) <= 25


def test_all_additions_together_leave_most_of_t5_to_the_artist():
    longest = [max(choices.values(), key=len) for choices in CHOICES.values()]
    assert len(" ".join([*longest, TEXTURE_ENHANCEMENT]).split()) < 150  # words; T5 reads 512 tokens


def test_unknown_choice_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'Kodachrome' as film. Expected none, Kodak Portra 400"):
        compose("a fox", film="Kodachrome")
    with pytest.raises(ValueError, match=r"'lens'. Expected use_case, camera"):
        compose("a fox", lens="50mm")


def test_prompt_words_and_sizes_load_without_torch():
    code = "import sys, krea.prompting, krea.aspect_ratio; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
