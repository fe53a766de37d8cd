"""A judge of the words that are written in pictures: OCR reads them, and the word lists judge what they say.

It is there for trademarks, which no other judge but a language model knows; and it sees only those that are written.
"""

import importlib.metadata
from collections.abc import Sequence
from functools import cache

import torch

from . import text_rules
from .decision import Answer, Judge, JudgeError, Thresholds
from .image_judges import prepare, reduced

OCR = "rapidocr"
AREA, LONGEST = 1024 * 1024, 2000  # px; beyond the latter RapidOCR reduces a picture anyway


def written_words(thresholds: Thresholds = text_rules.THRESHOLDS) -> Judge:
    """Words in pictures, read by RapidOCR with the models in its wheel (extra "ocr"), on the CPU.

    It is asked about pictures (B, H, W, C) as `image_judges.prepare` takes them, and raises JudgeError where that does
    or the package is missing. The models are loaded when it is first asked. A finding quotes nothing.
    """

    def ask(images: torch.Tensor) -> list[list[Answer]]:
        read = _reader()
        return [[_answer(read(reduced(look, AREA, LONGEST)).txts) for look in looks] for looks in prepare(images)]

    version = f"{_version()} lists:{text_rules.word_lists().version}"
    return Judge("OCR", version, thresholds, ask, "words of unlawful or infringing content in the picture")


def _answer(lines: Sequence[str] | None) -> Answer:
    match = text_rules.score("\n".join(lines or ()), written=True)
    return Answer(match.score, ", ".join(match.categories))


def _version() -> str:
    try:
        return importlib.metadata.version(OCR)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@cache
def _reader():
    try:
        from rapidocr import RapidOCR

        return RapidOCR(params={"Global.log_level": "critical"})  # its log would tell what is written
    except ImportError as error:
        raise JudgeError(
            f'Found no usable {OCR} ({error}). Install the extra "ocr" into ComfyUI\'s Python: pip install {OCR} '
            "onnxruntime."
        ) from error
