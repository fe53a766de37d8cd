"""Where this ComfyUI keeps its audit record, its certificate and the pictures that wait for review.

All of it is out of reach of ComfyUI's web server.
"""

import functools
import os
from pathlib import Path
from typing import Any

import folder_paths

from ..krea import VERSION
from ..krea.audit import AuditLog
from ..krea.c2pa_signing import Credentials, local_credentials
from ..krea.filters.decision import Verdict
from ..krea.quarantine import Case, Quarantine, Ruling

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


def check_prefix(prefix: str) -> None:
    """Raises ValueError for the beginning of a file's name that leads out of the output folder."""
    output = os.path.abspath(folder_paths.get_output_directory())
    path = os.path.abspath(os.path.join(output, os.path.normpath(prefix)))
    if os.path.commonpath([output, os.path.dirname(path)]) != output:
        raise ValueError(f"The filename prefix {prefix!r} leads out of the output folder. Choose one inside of it.")


def free_path(prefix: str, suffix: str, width: int, height: int) -> Path:
    """A path in the output folder that no file has, named as ComfyUI's Save Image names."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    while os.path.lexists(path := Path(folder) / f"{name}_{counter:05}_{suffix}"):
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
    return free_path(facts["prefix"], Path(case.file).suffix, facts["width"], facts["height"])
