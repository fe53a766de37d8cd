"""Appending to a log, one writer at a time, so that a kill at any moment loses no record that was written."""

import hmac
import itertools
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .. import files
from .records import (
    HEAD_FILE,
    OWN_FIELDS,
    START,
    START_ANEW,
    AuditError,
    Head,
    examine,
    misplaced,
    new_record,
    read_head,
    read_lines,
    record_files,
    write_head,
)

try:
    import fcntl

    def _lock(file: IO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _unlock(file: IO) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)

except ImportError:  # Windows
    import msvcrt

    def _lock(file: IO) -> None:
        while True:
            try:
                return msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except PermissionError:  # another holds it
                time.sleep(0.005)

    def _unlock(file: IO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)


MAX_FILE_BYTES = 16 * 2**20
KEY_BYTES = 32

_KEY_FILE, _LOCK_FILE = "prompt.key", "lock"


class AuditLog:
    """A log to append to, from any number of threads and processes at once.

    Args:
        folder: made where it does not exist (mode 0700, its files 0600); nothing else may lie in it.
        max_file_bytes: a record that would make a file larger than this begins the next one.

    Raises:
        AuditError: other things lie in the folder, or its prompt key is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike, max_file_bytes: int = MAX_FILE_BYTES):
        self.folder = Path(folder).absolute()
        self.max_file_bytes = max_file_bytes
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = os.listdir(self.folder)
        if names and not {_LOCK_FILE, HEAD_FILE}.intersection(names):
            raise AuditError(f"{self.folder} holds other things, such as {names[0]}. Give the log a folder of its own.")
        self.folder.chmod(0o700)
        key = self.folder / _KEY_FILE
        with _locked(self.folder):
            if not key.exists():
                if record_files(self.folder):
                    raise AuditError(f"{key} is missing: without it no prompt is found in the log. {START_ANEW}")
                if not (self.folder / HEAD_FILE).exists():
                    write_head(self.folder, START)
                files.replace(key, secrets.token_bytes(KEY_BYTES), owner_only=True)
            self._key = key.read_bytes()
        if len(self._key) != KEY_BYTES:
            raise AuditError(f"{key} has {len(self._key)} bytes; {KEY_BYTES} were expected. {START_ANEW}")

    def prompt_key(self, text: str) -> str:
        """What stands for a prompt in the log: its HMAC-SHA256 with this log's own random key, in hexadecimal.

        A plain hash would give a short prompt away to whoever tries many.
        """
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    def append(self, event: str, /, **fields) -> dict:
        """Write a record and return it; it is on the disk then.

        Args:
            event: what happened, in a word.
            fields: JSON values (tuples become lists). Never a prompt: `prompt_key` stands for it.

        Raises:
            AuditError: an event or a field that cannot be recorded, or a log whose head is missing or damaged;
                nothing of the record is written.
        """
        if not isinstance(event, str) or not event:
            raise AuditError(f"Found the event {event!r}. Expected a word.")
        for name, value in fields.items():
            if name in OWN_FIELDS:
                raise AuditError(f"The field {name} is one that the log itself writes. Give it another name.")
            _check(name, value)
        with _locked(self.folder):
            head = self._end()
            record, line = new_record(head, event, fields)
            if head.size and head.size + len(line) > self.max_file_bytes:
                head = head.in_next_file()
            with open(self.folder / head.file, "ab", opener=files.private) as file:
                file.write(line)
                files.flush(file)
            write_head(self.folder, head.after(record, line))
        return record

    def _end(self) -> Head:
        """Where the next record goes, once what a killed process left is in order; the caller holds the lock.

        Whole records behind the head are counted, a torn line is moved aside. A head that is ahead of the files stays
        as it is: the next record follows on those that were cut, so that their lack shows for good.
        """
        head = read_head(self.folder)
        present = record_files(self.folder)
        newest = max([*present, self.folder / head.file])
        size = newest.stat().st_size if newest.exists() else 0
        if (newest.name, size) == (head.file, head.size):
            return head
        for path in present:
            if path.name > head.file:
                head = head._replace(file=path.name, size=0)
            if path.name == head.file:
                for line in read_lines(path, head.size):
                    record, problem = examine(line)
                    if problem or misplaced(record, head):
                        break
                    head = head.after(record, line)

        content = newest.read_bytes() if size else b""
        cut = content.rfind(b"\n") + 1
        whole, torn = content[:cut], content[cut:]
        head = head._replace(file=newest.name, size=len(whole))
        if not torn:
            return head
        names = (f"{newest.name}.torn-{number}" for number in itertools.count(1))
        aside = next(path for name in names if not (path := self.folder / name).exists())
        files.replace(aside, torn, owner_only=True)
        record, line = new_record(head, "torn_line", {"file": newest.name, "bytes": len(torn), "moved_to": aside.name})
        # In one step, so that the torn bytes do not leave the file without a record of it.
        files.replace(newest, whole + line, owner_only=True)
        return head.after(record, line)


def _check(place: str, value: object) -> None:
    """Refuse what JSON cannot hold; the message does not quote it, since it may be a prompt."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        for name, item in value.items():
            _check(f"{place}.{name}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(f"{place}[{index}]", item)
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        found = value if isinstance(value, float) else f"a {type(value).__name__}"
        raise AuditError(
            f"The field {place} is {found}. Expected JSON: text, finite numbers, True, False, None, lists, and dicts "
            "with text as keys."
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps out other processes, and other threads: each opens the file anew, and so has a lock of its own."""
    with open(folder / _LOCK_FILE, "ab", opener=files.private) as file:
        _lock(file)
        try:
            yield
        finally:
            # Closing is not enough where a process was forked meanwhile: it keeps the file open.
            _unlock(file)
