"""Where this ComfyUI keeps its audit record, its certificate and the pictures that wait for review.

All of it is out of reach of ComfyUI's web server.
"""

import functools
import logging
import os
from pathlib import Path
from typing import Any

import folder_paths

from ..krea import VERSION
from ..krea.audit import AuditLog
from ..krea.c2pa_signing import Credentials, local_credentials
from ..krea.filters.decision import Verdict
from ..krea.quarantine import Case, Quarantine, Ruling

PREFIX = "Krea"  # of files' names, by default
LONGEST_NAME = 200  # bytes of a file's name before its number; a file system takes 255 with that and a suffix
_NAME = "flux_krea"  # ComfyUI's "system user" folders are the ones that none of its routes serve


@functools.cache
def audit_log() -> AuditLog:
    """The audit record."""
    return AuditLog(Path(folder_paths.get_system_user_directory(_NAME)) / "audit")


@functools.cache
def quarantine() -> Quarantine:
    """The pictures that wait for review."""
    return Quarantine(Path(folder_paths.get_system_user_directory(_NAME)) / "quarantine", _record_ruling, _place)


def credentials() -> Credentials:
    """What signs pictures here: the user's own certificate and key if they lie in that folder, else ones made there."""
    return local_credentials(Path(folder_paths.get_system_user_directory(_NAME)) / "certificate")


def record(event: str, verdict: Verdict, **fields: Any) -> None:
    """Append a decision of the filter to the audit record."""
    audit_log().append(event, pack=VERSION, **described(verdict), **fields)


def described(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    findings = [
        {
            "judge": finding.judge,
            "version": finding.version,
            "review_from": finding.thresholds.review,
            "block_from": finding.thresholds.block,
            "about": finding.about,
            "score": finding.score,
            "decision": finding.decision.name.lower(),
            "reason": finding.reason,
        }
        for finding in verdict.findings
    ]
    return {"decision": verdict.decision.name.lower(), "reasons": verdict.reasons, "findings": findings}


def checked_prefix(prefix: str) -> str:
    """The beginning of files' names, as ComfyUI's Save Image takes it; PREFIX where there is none.

    Raises ValueError where no file can have it: see `prefix_trouble`.
    """
    if trouble := prefix_trouble(prefix):
        raise ValueError(trouble)
    return PREFIX if os.path.normpath(prefix) == "." else prefix


def prefix_trouble(prefix: str | None) -> str | None:
    """What is wrong with the beginning of files' names, where none can be made with it: in words for people."""
    if not prefix:  # none, or one that comes by a wire and is not known yet
        return None
    output = os.path.abspath(folder_paths.get_output_directory())
    inside = os.path.normpath(prefix)
    path = os.path.abspath(os.path.join(output, inside))
    if inside != "." and os.path.commonpath([output, os.path.dirname(path)]) != output:
        trouble = "leads out of the output folder. Choose one inside of it"
    elif any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in prefix):
        trouble = "holds signs that a file's name cannot have. Use letters and digits"
    elif any(len(name.encode()) > LONGEST_NAME for name in inside.split(os.sep)):
        trouble = f"has a part of more than {LONGEST_NAME} bytes. Choose a shorter one"
    elif taken := next((folder for folder in Path(path).parents if folder.is_file()), None):
        trouble = f"names a folder where the file {taken.name} is. Choose another one, or move the file"
    else:
        return None
    return f"The filename prefix {ascii(prefix)} {trouble}."


def free_path(prefix: str, suffix: str, width: int, height: int) -> Path:
    """A path in the output folder that no file has, named as ComfyUI's Save Image names."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    while os.path.lexists(path := Path(os.path.abspath(folder)) / f"{name}_{counter:05}_{suffix}"):
        counter += 1
    return path


def _record_ruling(case: Case, ruling: Ruling) -> None:
    audit_log().append(
        "review",
        pack=VERSION,
        case=case.id,
        decision="approved" if ruling.approved else "rejected",
        reviewer=ruling.reviewer,
        note=ruling.note,
        sha256=case.sha256,
    )


def _place(case: Case) -> Path:
    facts = case.facts
    size = (Path(case.file).suffix, facts["width"], facts["height"])
    try:
        return free_path(checked_prefix(facts["prefix"]), *size)
    except (OSError, ValueError) as error:  # its folder has become a file meanwhile: an approved picture is not lost
        logging.warning("Krea Review: an approved picture gets the name %s: %s", PREFIX, error)
        return free_path(PREFIX, *size)
