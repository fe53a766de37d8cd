"""Words that are drawn into pictures are read and looked up."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from krea.filters import ocr_judge, text_rules
from krea.filters.decision import Decision, judge
from krea.filters.ocr_judge import written_words


@pytest.fixture(scope="module")
def one():
    """The judge, where its package is there."""
    pytest.importorskip("rapidocr")
    return written_words()


def drawn(*lines, size=(320, 160), ink=(30, 30, 30)):
    """(1, H, W, 3): black text on white."""
    picture = Image.new("RGB", size, "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((16, 16 + 48 * number), line, fill=ink, font=ImageFont.load_default(32))
    return torch.from_numpy(np.asarray(picture) / 255).float()[None]


def test_a_written_trademark_is_found_and_not_quoted(one):
    images = torch.cat((drawn("a red house"), drawn("Drink", "Coca-Cola", ink=(200, 20, 20))))
    harmless, branded = judge([one], images)
    assert (harmless.decision, branded.decision) == (Decision.PASS, Decision.REVIEW)
    (finding,) = branded.findings
    assert finding.about == "trademark or character" and "cola" not in str(finding).casefold()


def test_the_strictest_category_decides(one):
    (verdict,) = judge([one], drawn("hardcore porn"))
    assert verdict.decision is Decision.BLOCK and verdict.findings[0].about == "explicit sexual content"


def test_words_that_only_transparency_shows_are_read(one):
    hidden = torch.cat((torch.ones(1, 160, 320, 3), 1 - drawn("Coca-Cola")[..., :1]), -1)
    (verdict,) = judge([one], hidden)
    assert verdict.decision is Decision.REVIEW and verdict.findings[0].score is not None


@pytest.mark.parametrize("shape", [(1, 1, 3), (20000, 2, 3), (64, 64, 1)], ids=str)
def test_pictures_of_any_form_are_read(one, shape):
    (verdict,) = judge([one], torch.zeros(1, *shape))
    assert verdict.decision is Decision.PASS and verdict.findings[0].score == 0


def test_a_brand_stands_for_itself_in_a_picture_though_not_in_a_prompt():
    assert ocr_judge._answer(["Microsoft"]).about == "trademark or character"
    assert text_rules.score("a drawing in Microsoft Paint").score == 0


def test_misread_letters_are_no_disguise():
    assert ocr_judge._answer(["a w\u043erd"]).score == 0
    assert ocr_judge._answer(["C\u043eca-Cola"]).about == "trademark or character"


def test_without_the_package_pictures_are_reviewed_and_the_reason_says_how_to_install_it(monkeypatch):
    ocr_judge._reader.cache_clear()
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    monkeypatch.setattr(ocr_judge, "OCR", "no-such-package")
    (verdict,) = judge([written_words()], drawn("a red house"))
    assert verdict.decision is Decision.REVIEW and verdict.findings[0].version.startswith("not installed")
    assert 'the extra "ocr"' in verdict.reasons[0] and "pip install no-such-package" in verdict.reasons[0]
