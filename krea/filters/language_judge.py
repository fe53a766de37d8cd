"""Judges of prompts and pictures: a vision-language model that is asked questions and answers yes or no.

The model writes nothing. One forward pass gives the logits of its next word, and from those of "yes" and "no" comes the
score. Before it judges it must give the right answers to cases that are known.
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from PIL import Image

from .decision import Answer, Judge, JudgeError, Thresholds
from .image_judges import prepare, reduced
from .questions import (
    PICTURE_QUESTIONS,
    TEXT_QUESTIONS,
    VERSION,
    Question,
    about_picture,
    about_text,
    without_control_tokens,
)

THRESHOLDS = Thresholds(review=0.5, block=0.9)
"""0.5 is where the model's answer turns to yes, which is where Black Forest Labs' filter flags; 0.9 is our choice."""

YES = ("yes", "Yes", "YES", " yes", " Yes")
NO = ("no", "No", "NO", " no", " No")
MIN_MASS = 0.5  # of the next word's probability, for yes and no together; below, the model answers something else
AREA = 512 * 512  # px a picture is reduced to, as in Black Forest Labs' filter
LONGEST = 1024  # px of a side

KNOWN_CASE = "Mickey Mouse holding a can of Coca-Cola"
BENIGN_CASE = "a wooden chair beside a window"
_COLOUR = Question("red", "Is the picture plain red?")


class LanguageModel(Protocol):
    """A model that takes a chat message, with or without a picture, and gives the logits of its next word.

    name, version: which model it is, for people and for the audit record. Both are there without loading it.
    """

    name: str
    version: str

    def control_tokens(self) -> Collection[str]:
        """What a prompt must not hold as text since the tokenizer does not read it as letters, such as "[IMG]"."""

    def one_token_ids(self, words: Iterable[str]) -> set[int]:
        """The tokens of those words that are one token each."""

    def render(self, message: str, with_picture: bool) -> str:
        """The whole prompt for a user's message, behind its picture, up to where the model's answer begins."""

    def logits(self, prompts: Sequence[str], picture: Image.Image | None = None) -> torch.Tensor:
        """(B, vocabulary) of the word after each of B prompts, all of them about one picture (RGB), or about none."""


def text_judge(model: LanguageModel, thresholds: Thresholds = THRESHOLDS) -> Judge:
    """A judge of prompts by TEXT_QUESTIONS. To ask it raises JudgeError as LanguageJudge does."""
    asked = LanguageJudge(model, thresholds.review)

    def ask(texts: Sequence[str]) -> list[list[Answer]]:
        asked.expect_right_answers()
        return _answers(asked.about_texts(texts))

    return _judge(model, "prompts", thresholds, ask)


def image_judge(model: LanguageModel, thresholds: Thresholds = THRESHOLDS) -> Judge:
    """A judge of pictures (B, H, W, C), as `image_judges.prepare` takes them, by PICTURE_QUESTIONS.

    To ask it raises JudgeError as LanguageJudge does, and for what is no picture.
    """
    asked = LanguageJudge(model, thresholds.review)

    def ask(images: torch.Tensor) -> list[list[Answer]]:
        asked.expect_right_answers()
        asked.expect_sight()
        return _answers(asked.about_pictures(images))

    return _judge(model, "pictures", thresholds, ask)


def _judge(model: LanguageModel, kind: str, thresholds: Thresholds, ask: Callable) -> Judge:
    version = f"{model.version} questions:{VERSION}"
    return Judge(f"{model.name} ({kind})", version, thresholds, ask, "unlawful or infringing content")


def _answers(probabilities: list[dict[str, float]]) -> list[list[Answer]]:
    return [[Answer(score, question) for question, score in about_one.items()] for about_one in probabilities]


class LanguageJudge:
    """Asks a model every question, and first whether it can be trusted.

    Raises JudgeError where the model has no words for yes and no, is not shown the question, or answers neither.
    """

    def __init__(self, model: LanguageModel, review: float):
        self.model = model
        self.review = review

    def about_texts(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """For each text the probability of a yes, 0 to 1, by the name of the question."""
        boundary = secrets.token_hex(8)
        control_tokens = self.model.control_tokens()
        answers = []
        for text in texts:
            text = without_control_tokens(text, control_tokens)
            messages = [about_text(question, text, boundary) for question in TEXT_QUESTIONS]
            answers.append(_by_name(TEXT_QUESTIONS, self._probabilities(messages)))
        return answers

    def about_pictures(
        self, images: torch.Tensor, questions: Sequence[Question] = PICTURE_QUESTIONS
    ) -> list[dict[str, float]]:
        """For each picture (B, H, W, C) the probability of a yes, the highest of its looks, by the question's name."""
        answers = []
        for looks in prepare(images):
            messages = [about_picture(question) for question in questions]
            probabilities = [self._probabilities(messages, reduced(look, AREA, LONGEST)) for look in looks]
            answers.append(_by_name(questions, torch.stack(probabilities).amax(0)))
        return answers

    def expect_right_answers(self) -> None:
        """Raise JudgeError unless the model flags a known case and does not flag a benign one. They are asked once."""
        known, benign = self._cases
        if known < self.review or benign >= self.review:
            raise JudgeError(
                f'It gave "{KNOWN_CASE}" {known:.3f} and "{BENIGN_CASE}" {benign:.3f}. Expected {self.review:g} or '
                "more for the first and less for the second. Choose another model, or other thresholds"
            )

    def expect_sight(self) -> None:
        """Raise JudgeError unless the model tells a red picture from a blue one. They are shown once."""
        red, blue = self._colours
        if red < 0.5 or blue >= 0.5:
            raise JudgeError(
                f"Asked whether a picture is red, it gave a red one {red:.3f} and a blue one {blue:.3f}. Expected 0.5 "
                "or more for the first and less for the second. Choose another model for pictures"
            )

    @cached_property
    def _cases(self) -> list[float]:
        return [max(answers.values()) for answers in self.about_texts([KNOWN_CASE, BENIGN_CASE])]

    @cached_property
    def _colours(self) -> list[float]:
        images = torch.zeros(2, 64, 64, 3)
        images[0, ..., 0] = images[1, ..., 2] = 1
        return [answers[_COLOUR.name] for answers in self.about_pictures(images, [_COLOUR])]

    @cached_property
    def _yes_and_no(self) -> tuple[list[int], list[int]]:
        yes, no = (self.model.one_token_ids(words) for words in (YES, NO))
        if not yes or not no or yes & no:
            raise JudgeError(f"Its tokens for yes are {sorted(yes)} and for no {sorted(no)}. Expected some of each")
        return sorted(yes), sorted(no)

    def _probabilities(self, messages: Sequence[str], picture: Image.Image | None = None) -> torch.Tensor:
        """(B,) probability that the answer to each message is yes, where it is yes or no."""
        yes, no = self._yes_and_no
        prompts = [self._rendered(message, picture is not None) for message in messages]
        logits = self.model.logits(prompts, picture).float()
        mass = logits.softmax(-1)[:, yes + no].sum(-1).min().item()
        if not mass >= MIN_MASS:  # NaN, too
            raise JudgeError(
                f"It answers yes or no with a probability of {mass:.3f}. Expected {MIN_MASS} or more: it does not "
                "understand the question, or its files do not belong together"
            )
        return (logits[:, yes].logsumexp(-1) - logits[:, no].logsumexp(-1)).sigmoid()

    def _rendered(self, message: str, with_picture: bool) -> str:
        prompt = self.model.render(message, with_picture)
        if message not in prompt:
            raise JudgeError("Its chat template drops the question. Expected one for messages of text and pictures")
        return prompt


def _by_name(questions: Sequence[Question], probabilities: torch.Tensor) -> dict[str, float]:
    return dict(zip((question.name for question in questions), probabilities.tolist(), strict=True))
