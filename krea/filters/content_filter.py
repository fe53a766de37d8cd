"""A content filter: which judges look at prompts and pictures, and what becomes of what they find."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from .decision import Decision, Judge, Verdict, judge, not_reviewed

EMBEDDING = not_reviewed("the prompt names an embedding, which puts something into the picture that no words tell")
_EMBEDDING_SIGN = "embedding:"  # what ComfyUI's tokenizers look for, in these very letters


class Outcome(Enum):
    """What becomes of a picture."""

    PASS = "pass"
    HOLD = "hold for review"
    BLUR = "blur"
    BLOCK = "block"


@dataclass(frozen=True)
class ContentFilter:
    """Judges, and what happens in the two bands that do not pass.

    prompt, prompt_keys: the verdict about the prompts that the pictures are made from, once they were judged, and the
    keys under which the audit record knows them.
    """

    text_judges: tuple[Judge, ...]
    image_judges: tuple[Judge, ...]
    on_review: Outcome = Outcome.HOLD
    on_block: Outcome = Outcome.BLOCK
    prompt: Verdict | None = None
    prompt_keys: tuple[str, ...] = ()

    def __post_init__(self):
        if Outcome.PASS in (self.on_review, self.on_block):
            raise ValueError("What a filter flags cannot pass it; choose hold for review, blur or block.")

    def judge_prompt(self, texts: Sequence[str], cancel: tuple[type[Exception], ...] = ()) -> Verdict:
        """One verdict about all texts of a prompt; whatever the judges say, an embedding's name means review."""
        findings = [finding for verdict in judge(self.text_judges, texts, cancel) for finding in verdict.findings]
        if any(_EMBEDDING_SIGN in text for text in texts):
            findings.append(EMBEDDING)
        return Verdict(tuple(findings))

    def with_prompt(self, verdict: Verdict, key: str) -> "ContentFilter":
        """This filter for the pictures of a prompt that was judged, beside those that were before (one for T5, say)."""
        earlier = self.prompt.findings if self.prompt else ()
        return replace(self, prompt=Verdict(earlier + verdict.findings), prompt_keys=(*self.prompt_keys, key))

    def judge_pictures(self, pictures: Sequence, cancel: tuple[type[Exception], ...] = ()) -> list[Verdict]:
        """A verdict about each picture (HxWxC in 0..1); what was found in its prompt is found in the picture, too."""
        verdicts = judge(self.image_judges, pictures, cancel)
        if self.prompt is None:
            return verdicts
        return [Verdict(own.findings + self.prompt.findings) for own in verdicts]

    def outcome(self, verdict: Verdict) -> Outcome:
        """What becomes of a picture with this verdict."""
        return {Decision.PASS: Outcome.PASS, Decision.REVIEW: self.on_review, Decision.BLOCK: self.on_block}[
            verdict.decision
        ]
