"""The translations: complete, really translated, and true to the numbers and names of the English text."""

import re

import pytest

from dev.environment import ROOT
from dev.workflows import read

LOCALES = ROOT / "locales"
FILES = ("main.json", "nodeDefs.json")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
SAME_IN_CHINESE = {"Krea", "Flux Krea", "CLIP", "VAE", "Latent", "Open NSFW", "NSFW ViT"}
"""Names that Chinese users leave as they are."""


def texts(tree, path=()):
    """Every text with its place: {("FluxKreaPrompt", "display_name"): "Krea Prompt", ...}."""
    if isinstance(tree, str):
        return {path: tree}
    return {place: text for key, branch in tree.items() for place, text in texts(branch, (*path, key)).items()}


def facts(text):
    """What a translation must not change: file names, folders and numbers ("twice" is no number in either)."""
    return sorted(re.findall(r"[\w./-]*\.safetensors|models/\w+|\bSHA-256|(?<![\w.])\d+(?:[.:]\d+)*", text))


@pytest.fixture(params=FILES)
def both(request):
    return tuple(texts(read(LOCALES / language / request.param)) for language in ("en", "zh"))


def test_each_language_has_the_same_files():
    assert {path.name: sorted(file.name for file in path.iterdir()) for path in LOCALES.iterdir()} == {
        "en": sorted(FILES),
        "zh": sorted(FILES),
    }


def test_chinese_has_every_text(both):
    english, chinese = both
    assert english.keys() == chinese.keys()


def test_chinese_is_chinese(both):
    for place, text in both[1].items():
        assert CHINESE.search(text) or text in SAME_IN_CHINESE, f"{'.'.join(place)} is not translated: {text}"


def test_chinese_keeps_numbers_and_file_names(both):
    english, chinese = both
    for place, text in english.items():
        missing = [fact for fact in facts(text) if fact not in chinese[place]]
        assert not missing, f"{'.'.join(place)} lost {missing}: {chinese[place]}"


@pytest.mark.parametrize(
    "page, call, part",
    [
        ("frame_preview.js", r'sentence\("framePreview", "(\w+)"\)', "framePreview"),
        ("review.js", r'say\("(\w+)"\)', "review"),
    ],
)
def test_page_has_exactly_the_sentences_that_it_shows(page, call, part):
    shown = re.findall(call, (ROOT / "web" / page).read_text(encoding="utf-8"))
    assert sorted(set(shown)) == sorted(read(LOCALES / "en" / "main.json")["fluxKrea"][part])
