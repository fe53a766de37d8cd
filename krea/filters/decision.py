"""What judges found about a picture or a prompt, and the decision that follows: pass, review or block.

What was not judged is never passed: an error, a missing model, a score that is no number and the lack of any judge all
mean review by a person.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Decision(IntEnum):
    """The three bands, the strictest last."""

    PASS = 0
    REVIEW = 1
    BLOCK = 2


class Thresholds(NamedTuple):
    """The scores, 0 to 1, from which on a picture or a prompt is reviewed and is blocked."""

    review: float
    block: float

    def decide(self, score: float) -> Decision:
        """The band of a score; one that is exactly a threshold is above it."""
        if score >= self.block:
            return Decision.BLOCK
        return Decision.REVIEW if score >= self.review else Decision.PASS


class Answer(NamedTuple):
    """One of the answers that a judge gives about a picture or a prompt.

    score: 0 to 1.
    about: what was asked or looked at, in a few words, such as a question's name or a part of the picture.
    thresholds: what the score is held against, where it is not what the judge's others are.
    """

    score: float
    about: str = ""
    thresholds: Thresholds | None = None


@dataclass(frozen=True)
class Finding:
    """What one judge found.

    judge, version: who judged, by which model or list.
    about, score: of the answer that counts; the score is None where it was not judged.
    thresholds: what the score was held against.
    reason: a sentence for people; it never quotes the prompt.
    """

    judge: str
    version: str
    thresholds: Thresholds
    about: str
    score: float | None
    decision: Decision
    reason: str


def not_reviewed(reason: str) -> Finding:
    """What stands for a judge where there is none: review, for this reason."""
    return Finding("none", "", Thresholds(0, 1), "", None, Decision.REVIEW, f"Not reviewed: {reason}.")


def same_version(chosen: str, loaded: str) -> None:
    """Raises JudgeError when a judge's files are not those that were there when it was chosen."""
    if chosen != loaded:
        raise JudgeError("its files have changed since it was chosen. Run the graph again")


NO_JUDGE = not_reviewed("the filter has no judge for it")


@dataclass(frozen=True)
class Verdict:
    """What all judges found about one picture or prompt."""

    findings: tuple[Finding, ...]

    @property
    def decision(self) -> Decision:
        """The strictest of the findings, of which there is at least one."""
        return max(finding.decision for finding in self.findings)

    @property
    def reasons(self) -> list[str]:
        """Why the decision is not pass; empty where it is."""
        return [finding.reason for finding in self.findings if finding.decision is not Decision.PASS]


@dataclass(frozen=True)
class Judge:
    """A judge with its thresholds.

    ask: takes a list of things to judge and gives one or more answers about each.
    finds: what a high score says, in words that end the sentence "Open NSFW finds ...".
    """

    name: str
    version: str
    thresholds: Thresholds
    ask: Callable[[Sequence], Sequence[Sequence[Answer]]]
    finds: str

    def finding(self, answers: Sequence[Answer]) -> Finding:
        """What follows from the answers about one thing: the strictest decision, and of those the highest score."""
        if not answers:
            return self.not_judged("it gave no answer")
        found = [self._finding(answer) for answer in answers]
        return max(found, key=lambda one: (one.decision, one.score is None, one.score or 0.0))

    def _finding(self, answer: Answer) -> Finding:
        score, about, thresholds = answer.score, answer.about, answer.thresholds or self.thresholds
        if not 0 <= score <= 1:  # NaN, too
            return self.not_judged(f"its score is {score}")
        decision = thresholds.decide(score)
        if decision is Decision.PASS:
            reason = f"{self.name} finds nothing: {score:.3f}, review from {thresholds.review:g}."
        else:
            edge = thresholds.block if decision is Decision.BLOCK else thresholds.review
            finds = f"{self.finds} ({about})" if about else self.finds
            reason = f"{self.name} finds {finds}: {score:.3f}, {decision.name.lower()} from {edge:g}."
        return Finding(self.name, self.version, thresholds, about, float(score), decision, reason)

    def not_judged(self, why: str) -> Finding:
        """Review, since there is no score."""
        reason = f"Not reviewed by {self.name}: {why.rstrip('.')}."
        return Finding(self.name, self.version, self.thresholds, "", None, Decision.REVIEW, reason)


def judge(judges: Sequence[Judge], things: Sequence, cancel: tuple[type[Exception], ...] = ()) -> list[Verdict]:
    """A verdict for each of the things (a batch of pictures, or prompts).

    Args:
        cancel: exceptions that mean the user's cancel; they go on, every other one is a judge that did not judge.
    """
    findings = [_findings(one, things, cancel) for one in judges] or [[NO_JUDGE for _ in things]]
    return [Verdict(of_one) for of_one in zip(*findings, strict=True)]


def _findings(one: Judge, things: Sequence, cancel: tuple[type[Exception], ...]) -> list[Finding]:
    try:
        answers = one.ask(things)
        if len(answers) != len(things):
            raise JudgeError(f"it gave answers about {len(answers)} of {len(things)}")
    except cancel:
        raise
    except Exception as error:
        if len(things) > 1:  # what is wrong with one shall not hold up the others
            return [_findings(one, things[place : place + 1], cancel)[0] for place in range(len(things))]
        if isinstance(error, JudgeError):
            return [one.not_judged(str(error))]
        # Its message may hold the prompt, which must reach neither the log nor the audit record; its place does not.
        place = "".join(traceback.format_tb(error.__traceback__))
        logging.warning("%s could not judge: %s\n%s", one.name, type(error).__name__, place)
        return [one.not_judged(type(error).__name__)]
    return [one.finding(about_one) for about_one in answers]


class JudgeError(RuntimeError):
    """A judge that cannot judge; the message says why and what to do, and never quotes the prompt."""
