"""Audit logs for tests: made, read and changed behind the log's back."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from krea.audit import AuditLog

FIRST = "audit-000001.jsonl"
LAST = "audit-000003.jsonl"
needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes and no SIGKILL")


def fill(folder: Path, count: int = 5, **options) -> list[dict]:
    log = AuditLog(folder, **options)
    return [log.append("decision", number=number, score=number / 7) for number in range(count)]


def fill_three_files(folder: Path) -> Path:
    """Six records, two to a file."""
    fill(folder, 6, max_file_bytes=700)
    assert [path.read_bytes().count(b"\n") for path in sorted(folder.glob("audit-*"))] == [2, 2, 2]
    return folder


def lines(folder: Path) -> list[bytes]:
    return [line for path in sorted(folder.glob("audit-??????.jsonl")) for line in path.read_bytes().splitlines(True)]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in lines(folder)]


def rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(True))))
