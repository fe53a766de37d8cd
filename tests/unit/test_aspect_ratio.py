"""Picture sizes: the table, the rule behind it, and what a wrong request is told."""

from fractions import Fraction
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea.aspect_ratio import PRESETS, SQUARE_SIDES, Frame, Size, frame, nearest_size, parse_ratio

TABLE = [
    ("1:1", "1024x1024", "1536x1536", "4096x4096"),
    ("4:3", "1168x880", "1776x1328", "4672x3520"),
    ("3:2", "1248x832", "1872x1248", "4992x3328"),
    ("16:9", "1360x768", "2048x1152", "5440x3072"),
    ("2.35:1", "1584x672", "2368x1008", "6336x2688"),
    ("4:5", "912x1136", "1376x1712", "3648x4544"),
    ("2:3", "832x1248", "1248x1872", "3328x4992"),
    ("9:16", "768x1360", "1152x2048", "3072x5440"),
]


def written(size: Size) -> str:
    return f"{size.width}x{size.height}"


@pytest.mark.parametrize(("ratio", "at_1k", "at_1_5k", "at_4k"), TABLE)
def test_sizes_are_those_of_the_model(ratio, at_1k, at_1_5k, at_4k):
    assert written(frame(ratio, "1K").size) == at_1k
    assert written(frame(ratio, "1.5K").size) == at_1_5k
    assert written(frame(ratio, "4K").final_size) == at_4k


def test_there_are_no_other_presets():
    assert list(PRESETS) == [row[0] for row in TABLE]


def test_default_is_3_2_at_1_5k():
    assert frame() == Frame(Size(1872, 1248), 1)


def test_help_page_shows_the_same_table(root):
    page = (root / "web" / "docs" / "FluxKreaAspectRatioLatent.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if " x " in line and "|" in line
    ]
    for (ratio, *sizes), (named, *shown, meant_for) in zip(TABLE, rows, strict=True):
        assert named.removesuffix(" (default)") == ratio
        assert [size.replace(" ", "") for size in shown] == sizes
        assert meant_for == PRESETS[ratio].meant_for


@pytest.mark.parametrize("ratio", PRESETS)
@pytest.mark.parametrize("resolution", SQUARE_SIDES)
def test_every_preset_follows_the_rule_for_custom_sizes(ratio, resolution):
    megapixels = (SQUARE_SIDES[resolution] / 1024) ** 2
    assert nearest_size(parse_ratio(ratio), megapixels) == PRESETS[ratio].sizes[resolution]


def test_4k_renders_at_1k_and_enlarges_four_times():
    assert frame("3:2", "4K") == Frame(Size(1248, 832), 4)
    assert frame("custom", "4K", custom_ratio="3:2") == Frame(Size(1248, 832), 4)


@pytest.mark.parametrize(("ratio", "size"), [("1:1", (256, 256)), ("3:2", (320, 208)), ("2:3", (208, 320))])
def test_small_custom_area(ratio, size):
    assert frame(ratio, "custom", custom_megapixels=0.0625).size == size


def test_custom_values_count_only_when_custom_is_chosen():
    assert frame("3:2", "1K", custom_ratio="nonsense", custom_megapixels=-1).size == (1248, 832)


def test_swap_turns_the_frame():
    assert frame("3:2", "1K", swap_sides=True).size == (832, 1248)
    assert frame("custom", "1K", custom_ratio="9:21", swap_sides=True) == frame("custom", "1K", custom_ratio="21:9")


def test_picture_gives_its_ratio_and_the_resolution_its_area():
    assert frame("1:1", "1K", picture=(6000, 4000)).size == (1248, 832)
    assert frame("1:1", "1.5K", picture=(30, 40), swap_sides=True).size == (1776, 1328)
    assert frame("custom", "1K", custom_ratio="nonsense", picture=(7, 7)).size == (1024, 1024)


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("21:9", Fraction(21, 9)),
        (" 16 x 9 ", Fraction(16, 9)),
        ("3X2", Fraction(3, 2)),
        ("4×5", Fraction(4, 5)),
        ("1920/1080", Fraction(16, 9)),
        ("2.39:1", Fraction(239, 100)),
        ("1.85", Fraction(185, 100)),
    ],
)
def test_ratio_is_read_as_artists_write_it(text, ratio):
    assert parse_ratio(text) == ratio


@pytest.mark.parametrize("text", ["", "wide", "0:1", "1:0", "0", "-3:2", "3:2:1", "3:", ":2", "1e9:1", "nan", "٣:٢"])
def test_wrong_ratio_is_told_what_to_write(text):
    with pytest.raises(ValueError, match="21:9") as error:
        parse_ratio(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("megapixels", [0, -1, float("nan"), float("inf"), 257])
def test_wrong_area_is_refused(megapixels):
    with pytest.raises(ValueError, match="megapixels"):
        frame("1:1", "custom", custom_megapixels=megapixels)


def test_too_long_a_side_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"1000:1 .* 32000 x 32 px.* 16384 px a side"):
        frame("custom", "1K", custom_ratio="1000:1")


@pytest.mark.parametrize(("wrong", "expected"), [({"aspect_ratio": "5:4"}, "4:5"), ({"resolution": "2K"}, "1.5K")])
def test_unknown_choice_names_the_known_ones(wrong, expected):
    with pytest.raises(ValueError, match=expected) as error:
        frame(**wrong)
    assert repr(next(iter(wrong.values()))) in str(error.value)


@given(
    ratio=st.fractions(min_value=Fraction(1, 8), max_value=8, max_denominator=9999),
    megapixels=st.floats(min_value=0.01, max_value=16),
)
def test_any_size_is_the_nearest_in_multiples_of_16(ratio, megapixels):
    size = nearest_size(ratio, megapixels)
    assert size.width % 16 == size.height % 16 == 0
    short, long, elongation = min(size), max(size), max(ratio, 1 / ratio)
    assert abs(short - sqrt(megapixels * 1024**2 / elongation)) <= 8 + 1e-6
    assert abs(long - short * elongation) <= 8
    assert (size.width >= size.height) == (ratio >= 1) or size.width == size.height


@given(st.integers(1, 4096), st.integers(1, 4096), st.floats(min_value=0.05, max_value=2.5))
def test_a_turned_ratio_gives_the_turned_size(width, height, megapixels):
    if max(width, height) / min(width, height) <= 20:
        size = nearest_size(Fraction(width, height), megapixels)
        assert nearest_size(Fraction(height, width), megapixels) == (size.height, size.width)
