"""What the writer and the readers of a log share: the form of its records, its head and its files."""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from .. import files

MAX_LINE_BYTES = 2**20  # readers hold one line in memory

# What the log itself writes in a record.
OWN_FIELDS = {"sequence": int, "time": str, "event": str, "previous": str, "hash": str}
HEAD_FILE = "head.json"
START_ANEW = "Restore it from a backup, or move the folder away to start a new log."

_FILE = re.compile(r"audit-([0-9]{6})\.jsonl")


class AuditError(ValueError):
    """A log, a field or a file that cannot be used; the message says what was found and what to do."""


class Head(NamedTuple):
    """The last record: its number, which is also how many there are, its hash, and the file and byte where it ends."""

    sequence: int
    hash: str
    file: str
    size: int

    def after(self, record: dict, line: bytes) -> "Head":
        """The head once a record stands behind it in the same file."""
        return Head(record["sequence"], record["hash"], self.file, self.size + len(line))

    def in_next_file(self) -> "Head":
        """The head where the next record begins a file."""
        return self._replace(file=f"audit-{int(_FILE.fullmatch(self.file)[1]) + 1:06d}.jsonl", size=0)


START = Head(0, "0" * 64, "audit-000001.jsonl", 0)


def new_record(head: Head, event: str, fields: dict) -> tuple[dict, bytes]:
    """The record that comes after the head, and its line.

    Raises:
        AuditError: the line is longer than MAX_LINE_BYTES.
    """
    record = {**fields, "sequence": head.sequence + 1, "time": now(), "event": event, "previous": head.hash}
    record["hash"] = record_hash(record)
    line = canonical_line(record)
    if len(line) > MAX_LINE_BYTES:
        raise AuditError(f"The audit record has {len(line):,} bytes. Expected at most {MAX_LINE_BYTES:,}.")
    return record, line


def examine(line: bytes) -> tuple[dict | None, str | None]:
    """The record in a line, or None where it holds none, and what is wrong with it."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not all(
            isinstance(record.get(name), kind) for name, kind in OWN_FIELDS.items()
        ):
            return None, "is not an audit record"
        # Of the many ways to write the same JSON only one is right, so that no changed byte goes unseen.
        if canonical_line(record) != line:
            return record, "is not written as the log writes it: it was edited"
        if record_hash(record) != record["hash"]:
            return record, "does not have the hash of its content: it was edited"
    except (ValueError, RecursionError):
        return None, "is not JSON"
    return record, None


def misplaced(record: dict, head: Head) -> str | None:
    """What is wrong with a record's place behind the head."""
    number, expected = record["sequence"], head.sequence + 1
    if number > expected:
        return f"records {expected} to {number - 1} are missing before record {number}"
    if number < expected:
        return f"found record {number} where {expected} was expected: it was inserted or moved"
    if head.hash and record["previous"] != head.hash:
        return "does not follow on the record before it: one of the two was replaced"
    return None


def canonical_line(value: object) -> bytes:
    """Canonical JSON: sorted names, no spaces, ASCII; and a line end."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def record_hash(record: dict) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of all fields but the hash itself."""
    content = {name: value for name, value in record.items() if name != "hash"}
    return hashlib.sha256(canonical_line(content)[:-1]).hexdigest()


def now() -> str:
    """The time as records state it: UTC in ISO 8601, to the microsecond."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def read_head(folder: Path) -> Head:
    """The head of a log.

    Raises:
        AuditError: it is missing, edited or damaged.
    """
    try:
        content = (folder / HEAD_FILE).read_bytes()
        head = Head(**json.loads(content))
        if canonical_line(head._asdict()) == content and head.sequence >= 0 and head.size >= 0:
            if _FILE.fullmatch(head.file) and (head.sequence or head == START):
                return head
    except FileNotFoundError:
        raise AuditError(
            f"{HEAD_FILE} is missing, without which a cut of the end cannot be seen. {START_ANEW}"
        ) from None
    except (ValueError, TypeError, RecursionError):
        pass
    raise AuditError(f"{HEAD_FILE} was edited or damaged. {START_ANEW}")


def write_head(folder: Path, head: Head) -> None:
    """Put the head on the disk; the caller holds the lock."""
    files.replace(folder / HEAD_FILE, canonical_line(head._asdict()), owner_only=True)


def record_files(folder: Path) -> list[Path]:
    """The files that hold a log's records, in order."""
    return sorted(path for path in folder.iterdir() if _FILE.fullmatch(path.name))


def read_lines(path: Path, start: int = 0) -> Iterator[bytes]:
    """The lines of a file from a byte on; one that is longer than MAX_LINE_BYTES comes in pieces."""
    with open(path, "rb") as file:
        file.seek(start)
        while line := file.readline(MAX_LINE_BYTES):
            yield line
