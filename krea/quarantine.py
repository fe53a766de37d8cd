"""Pictures that wait for a person's decision, in a folder of their own that no server shows.

Each waits in a folder of its own, made whole and then renamed into place. A decision is claimed by creating a file that
must not exist, so of two reviewers only the first decides; what follows from it (record, release, removal) can be taken
up again after a kill at any moment.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from . import files

_Record = TypeVar("_Record")
_ID = re.compile(r"[0-9a-f]{32}")
_PARTIAL = ".partial-"
_DECIDED = ".decided-"
_ABANDONED_S = 3600  # a folder that was not renamed for so long belongs to a process that was killed


class NotWaitingError(LookupError):
    """No picture with this id waits: it was decided, or never was."""


class NotCarriedOutError(RuntimeError):
    """A ruling is kept, but what follows from it could not be done yet."""


@dataclass(frozen=True)
class Case:
    """A picture that waits.

    held: UTC, ISO 8601. file: name of the picture's file. sha256: of its bytes. facts: what the filter knows of it.
    """

    id: str
    held: str
    file: str
    sha256: str
    facts: dict


@dataclass(frozen=True)
class Ruling:
    """A person's decision. released: where an approved picture goes, once that is known."""

    approved: bool
    reviewer: str
    note: str
    time: str
    released: str | None = None


class Quarantine:
    """The folder, with the ways to record a ruling and to release a picture.

    record: called with (case, ruling), once for each ruling; after a kill perhaps once more.
    place: gives a free path for an approved picture.
    """

    def __init__(self, folder: Path, record: Callable[[Case, Ruling], None], place: Callable[[Case], Path]):
        self.folder, self._record, self._place = Path(folder), record, place

    def hold(self, picture: bytes, suffix: str, facts: Mapping[str, Any]) -> Case:
        """Keep the bytes of a picture's file, as they would be released; `facts` must be JSON."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_abandoned()
        case = Case(secrets.token_hex(16), _now(), "picture" + suffix, hashlib.sha256(picture).hexdigest(), dict(facts))
        partial = self.folder / (_PARTIAL + case.id)
        partial.mkdir(mode=0o700)
        files.create(partial / case.file, picture)
        files.create(partial / "case.json", json.dumps(asdict(case), allow_nan=False).encode())
        os.rename(partial, self.folder / case.id)
        return case

    def waiting(self) -> list[Case]:
        """The cases without a ruling, the oldest first. One whose record is damaged is logged and stays where it is."""
        cases = []
        for case_id in self._ids():
            try:
                if not self._ruled(case_id) and (case := self._case(case_id)):
                    cases.append(case)
            except (OSError, ValueError) as error:
                logging.warning("%s", error)
        return sorted(cases, key=lambda case: case.held)

    def picture(self, case_id: str) -> tuple[Case, bytes]:
        """A waiting picture's case and bytes.

        Raises:
            NotWaitingError: there is none.
            ValueError: its files are not those that were held.
            OSError: they cannot be read.
        """
        case = self._waiting(case_id)
        try:
            return case, self._held(case)
        except FileNotFoundError:
            if (self.folder / case_id).exists() and not self._ruled(case_id):
                raise
            raise NotWaitingError(case_id) from None

    def rule(self, case_id: str, approved: bool, reviewer: str, note: str) -> Ruling:
        """Decide about a waiting picture: an approved one is released, a rejected one deleted.

        Raises:
            NotWaitingError: it does not wait (any more).
            NotCarriedOutError: the ruling is kept, and carried out by `resume`.
            ValueError, OSError: there is no ruling, since the picture is not the one that was held or cannot be read.
        """
        case = self.picture(case_id)[0] if approved else self._waiting(case_id)
        ruling = Ruling(approved, reviewer, note, _now())
        try:
            files.create(self._ruling_file(case_id), _encoded(ruling))
        except (FileExistsError, FileNotFoundError):  # another reviewer was first
            raise NotWaitingError(case_id) from None
        try:
            return self._settle(case, ruling)
        except Exception as error:
            raise NotCarriedOutError(str(error)) from error

    def resume(self) -> list[Exception]:
        """Settle what was decided when the process was killed; what could not be settled, for whatever reason."""
        self._remove_abandoned()
        failed = []
        for case_id in self._ids():
            ruling = self._ruling_file(case_id)
            try:
                if self._ruled(case_id):
                    if case := self._case(case_id):
                        self._settle(case, _read(Ruling, ruling))
                else:  # a name that was claimed and never filled, on a file system without links
                    ruling.unlink(missing_ok=True)
            except Exception as error:  # one case shall not hold up the others, nor ComfyUI's start
                failed.append(error)
        return failed

    def _settle(self, case: Case, ruling: Ruling) -> Ruling:
        self._record(case, ruling)
        if ruling.approved:
            ruling = self._release(case, ruling)
        os.rename(self.folder / case.id, self.folder / (_DECIDED + case.id))
        self._remove_abandoned()
        return ruling

    def _release(self, case: Case, ruling: Ruling) -> Ruling:
        """The ruling with the path that the picture has now, written down first, so that a kill makes no second one."""
        picture = self._held(case)
        while True:
            if ruling.released is None:
                ruling = replace(ruling, released=str(self._place(case)))
                files.replace(self._ruling_file(case.id), _encoded(ruling))
            target = Path(ruling.released)
            try:
                files.create(target, picture)
            except FileExistsError:
                if target.read_bytes() != picture:  # another picture took the name
                    ruling = replace(ruling, released=None)
                    continue
            return ruling

    def _held(self, case: Case) -> bytes:
        """The bytes of a case's picture. Raises ValueError when they are not those that were held."""
        path = self.folder / case.id / case.file
        picture = path.read_bytes()
        if hashlib.sha256(picture).hexdigest() != case.sha256:
            raise ValueError(f"{path} is not the picture that was held: its SHA-256 is another. It is not released.")
        return picture

    def _waiting(self, case_id: str) -> Case:
        case = self._case(case_id) if _ID.fullmatch(case_id) else None
        if case is None or self._ruled(case_id):
            raise NotWaitingError(case_id)
        return case

    def _case(self, case_id: str) -> Case | None:
        try:
            return _read(Case, self.folder / case_id / "case.json")
        except FileNotFoundError:
            return None

    def _ids(self) -> list[str]:
        if not self.folder.exists():
            return []
        with os.scandir(self.folder) as entries:
            return [entry.name for entry in entries if _ID.fullmatch(entry.name) and entry.is_dir()]

    def _ruled(self, case_id: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self._ruling_file(case_id).stat().st_size > 0
        return False

    def _ruling_file(self, case_id: str) -> Path:
        return self.folder / case_id / "ruling.json"

    def _remove_abandoned(self) -> None:
        """Remove what was decided, and what a process that was killed had not yet made whole.

        What cannot be removed is logged and tried again with the next picture that comes or goes.
        """
        for folder in [*self.folder.glob(_DECIDED + "*"), *self.folder.glob(_PARTIAL + "*")]:
            try:
                if folder.name.startswith(_DECIDED) or time.time() - folder.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(folder)
            except FileNotFoundError:  # another process removes it, too, or has made it whole
                continue
            except OSError as error:
                logging.warning("Krea Review: %s cannot be removed: %s", folder, error)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _encoded(ruling: Ruling) -> bytes:
    return json.dumps(asdict(ruling)).encode()


def _read(kind: type[_Record], path: Path) -> _Record:
    try:
        record = kind(**json.loads(path.read_bytes()))
        types = get_type_hints(kind)
        for name, value in asdict(record).items():
            if not isinstance(value, types[name]):
                raise TypeError(f"{name} is {value!r}")
        return record
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). If a newer version of Flux Krea wrote it, update this one; else look at "
            "the folder by hand."
        ) from error
