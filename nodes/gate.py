"""The gate: each picture of a batch is judged, and what does not pass is held for review, blurred or blocked."""

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.cli_args import args

from ..krea import VERSION
from ..krea.c2pa_signing import Credentials, sign
from ..krea.disclosure import Disclosure, Encoded, encode
from ..krea.filters.content_filter import ContentFilter, Outcome
from ..krea.filters.decision import Verdict, not_reviewed
from ..krea.picture_file import SUFFIXES, DigitalSourceType
from . import desk

CANCEL = (comfy.model_management.InterruptProcessingException,)
DISCLOSED = Disclosure(DigitalSourceType.GENERATED, "Flux Krea", VERSION)
_BLURRED_SIDE = 12  # cells along the shorter side at most: colours, no forms
_SMALLEST_CELL = 4  # px


@dataclass(frozen=True)
class Form:
    """How pictures become files: of what name (from `desk.checked_prefix`), format and content."""

    prefix: str
    metadata: Mapping[str, str]
    disclosure: Disclosure = DISCLOSED
    file_format: str = "png"
    quality: int = 95
    credentials: Credentials | None = None

    def encoded(self, picture: torch.Tensor) -> Encoded:
        """A picture (H, W, C) as a file, signed where there are credentials; numbers that are none become black."""
        pixels = torch.nan_to_num(picture.float(), posinf=1, neginf=0).cpu()
        if pixels.shape[-1] == 1:
            pixels = pixels.expand(-1, -1, 3)
        file = encode(pixels.numpy(), self.file_format, self.disclosure, self.metadata, self.quality)
        if self.credentials is None:
            return file
        return file._replace(data=sign(file.data, self.file_format, self.disclosure, self.credentials))


class Judged(NamedTuple):
    """A picture after the gate.

    picture: (H, W, C) that may be shown, blurred where the outcome says so; None where nothing may.
    id: of the picture in the audit record, and in the quarantine where it is held.
    """

    verdict: Verdict
    outcome: Outcome
    picture: torch.Tensor | None
    id: str


def metadata_of(hidden) -> dict[str, str]:
    """The graph, as ComfyUI's own nodes write it into files; empty where ComfyUI runs without that."""
    if args.disable_metadata:
        return {}
    graph = hidden.prompt and {
        # "is_changed" is ComfyUI's note of the files behind a node: this machine's paths, which are nobody's business
        # and would give the same job other bytes on every machine.
        name: {key: value for key, value in node.items() if key != "is_changed"}
        for name, node in hidden.prompt.items()
    }
    values = {"prompt": graph} | (hidden.extra_pnginfo or {})
    return {name: json.dumps(value) for name, value in values.items() if value is not None}


def gate(content_filter: ContentFilter, images: torch.Tensor, form: Form) -> list[Judged]:
    """Judge pictures (B, H, W, C) in 0..1; a held one waits for review in the form in which it would be saved.

    Raises:
        ValueError: there is no picture.
    """
    if not images.numel():
        raise ValueError(f"There is no picture to judge: the batch is {tuple(images.shape)}. Wire decoded pictures.")
    return [
        _settled(content_filter, picture, verdict, form)
        for picture, verdict in zip(images, content_filter.judge_pictures(images, CANCEL), strict=True)
    ]


def _settled(content_filter: ContentFilter, picture: torch.Tensor, verdict: Verdict, form: Form) -> Judged:
    outcome = content_filter.outcome(verdict)
    shown, own_id = None, secrets.token_hex(16)
    if outcome is Outcome.PASS:
        shown = picture
    elif outcome is Outcome.BLUR:
        shown = blurred(picture)
    elif outcome is Outcome.HOLD:
        facts = desk.described(verdict) | {"prefix": form.prefix, "width": picture.shape[1], "height": picture.shape[0]}
        try:
            own_id = desk.quarantine().hold(form.encoded(picture).data, SUFFIXES[form.file_format], facts).id
        except OSError as error:  # the others of the batch shall not be lost with it
            logging.exception("A picture could not be kept for review.")
            outcome = Outcome.BLOCK
            verdict = Verdict((*verdict.findings, not_reviewed(f"it could not be kept for a person ({error})")))
    prompt = " ".join(content_filter.prompt_keys) or None
    desk.record("picture", verdict, picture=own_id, outcome=outcome.value, prompt=prompt)
    return Judged(verdict, outcome, shown, own_id)


def blurred(picture: torch.Tensor) -> torch.Tensor:
    """A picture (H, W, C) of which only patches of colour are left."""
    height, width, _ = picture.shape
    cell = max(_SMALLEST_CELL, min(height, width) // _BLURRED_SIDE)
    planes = torch.nan_to_num(picture, posinf=1, neginf=0).movedim(-1, 0)[None]
    cells = F.adaptive_avg_pool2d(planes, (max(1, height // cell), max(1, width // cell)))
    return F.interpolate(cells, (height, width), mode="bilinear")[0].movedim(0, -1)


def report(results: list[Judged]) -> str:
    """What became of a batch, for people: a line for the batch and one for each picture that did not pass."""
    passed = sum(one.outcome is Outcome.PASS for one in results)
    lines = [f"{passed} of {len(results)} pictures pass the content filter."]
    for number, one in enumerate(results, 1):
        if one.outcome is not Outcome.PASS:
            fate = {Outcome.HOLD: "waits for review", Outcome.BLUR: "blurred", Outcome.BLOCK: "blocked"}[one.outcome]
            lines.append(f"Picture {number}: {fate}. {' '.join(one.verdict.reasons)}")
    return "\n".join(lines)


def verdicts(results: list[Judged]) -> list[dict]:
    """What became of each picture, for programs."""
    return [desk.described(one.verdict) | {"outcome": one.outcome.value, "id": one.id} for one in results]
