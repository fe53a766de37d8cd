"""The folder of a batch: what is finished, who was given what, and the lock that keeps a second run out.

NAME/             a finished job: its pictures and its result, made elsewhere and renamed into place whole
report.json       of the last run
.batch/token      makes this folder's job ids its own
.batch/lock       held by the run
.batch/given/     NAME.json: the id and the worker under which a job is looked for after a kill
.batch/partial/   NAME/: what a job has so far
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from krea import files

from .. import delivery
from ..errors import CannotSave, InvalidRequest
from ..request import Request
from ..result import Result
from .jobs import BatchJob
from .report import Report
from .worker import next_id

try:
    import fcntl

    def _lock(file: IO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

except ImportError:  # Windows
    import msvcrt

    def _lock(file: IO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


class Given(NamedTuple):
    """The id of a job, and who was given it last."""

    job_id: str
    worker: str | None = None


class Folder:
    """Used as `with`, which keeps other runs out. Its methods raise CannotSave when the disk does not take a file."""

    def __init__(self, path: Path):
        self.path = path
        self._own = path / ".batch"

    def __enter__(self) -> Folder:
        with saving(self.path):
            for folder in (self._own / "given", self._own / "partial"):
                folder.mkdir(parents=True, exist_ok=True)
            self._held = open(self._own / "lock", "ab")
        try:
            _lock(self._held)
        except OSError:  # the system frees the lock when its holder ends, however it ends
            self._held.close()
            raise CannotSave(
                f"Another krea-client batch is writing to {self.path}. Wait for it, or choose another folder."
            ) from None
        self._token = self._read_token()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def with_seed(self, job: BatchJob) -> BatchJob:
        """The job with a seed, which is the same in every run over this folder."""
        if job.request.seed is not None:
            return job
        seed = uuid.UUID(self._first_id(job)).int % 2**32
        return BatchJob(job.line, job.name, job.request.changed(seed=seed))

    def unfinished(self, jobs: list[BatchJob]) -> list[BatchJob]:
        """The jobs without a result here. Raises InvalidRequest: a result is that of another request."""
        left, changed = [], []
        for job in jobs:
            folder = self.path / job.name
            if not folder.exists():
                left.append(job)
            elif difference := _difference(job.request, folder):
                changed.append(f"line {job.line}: {folder} {difference}")
        if changed:
            raise InvalidRequest(
                "\n".join(
                    [
                        f"Nothing was run: {self.path} has other results than these lines ask for. Give a changed line "
                        "another id or choose another folder, or delete the result.",
                        *changed,
                    ]
                )
            )
        return left

    def given(self, job: BatchJob) -> Given:
        """The id under which a job is run or found, and the worker that may have it."""
        try:
            found = json.loads(self._given(job).read_bytes())
        except FileNotFoundError:
            return Given(self._first_id(job))
        same = found["request"] == job.request.values()
        return Given(found["job_id"], found["worker"]) if same else Given(self._first_id(job))

    def give(self, job: BatchJob, given: Given) -> Path:
        """Notes who gets a job, before they do; the empty folder for its files."""
        self._note(job, given)
        partial = self._partial(job)
        with saving(partial):
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir()
        return partial

    def take_back(self, job: BatchJob, given: Given) -> None:
        """Notes that a job was cancelled, so that the next run does not take that for its answer."""
        self._note(job, Given(next_id(given.job_id)))

    def finish(self, job: BatchJob, result: Result) -> Result:
        """Puts a job's files in their place; its result names them there."""
        partial, target = self._partial(job), self.path / job.name
        result = result.model_copy(
            update={
                "pictures": [
                    each.model_copy(update={"path": each.path and str(target / Path(each.path).name)})
                    for each in result.pictures
                ],
                # A worker on another machine was sent the reference pictures themselves.
                "request": job.request.values(),
                "settings": result.settings | job.request.model_dump(mode="json"),
            }
        )
        with saving(target):
            files.replace(_result_file(partial), result.model_dump_json(indent=2).encode() + b"\n")
            os.rename(partial, target)
            self._given(job).unlink(missing_ok=True)
        return result

    def report(self, report: Report) -> None:
        """Writes report.json."""
        path = self.path / "report.json"
        with saving(path):
            files.replace(path, report.model_dump_json(indent=2).encode() + b"\n")

    def _note(self, job: BatchJob, given: Given) -> None:
        path = self._given(job)
        with saving(path):
            files.replace(path, json.dumps({"request": job.request.values(), **given._asdict()}).encode())

    def _given(self, job: BatchJob) -> Path:
        return self._own / "given" / f"{job.name}.json"

    def _partial(self, job: BatchJob) -> Path:
        return self._own / "partial" / job.name

    def _first_id(self, job: BatchJob) -> str:
        return str(uuid.uuid5(self._token, json.dumps([job.name, job.request.values()], sort_keys=True)))

    def _read_token(self) -> uuid.UUID:
        path = self._own / "token"
        if not path.exists():
            with saving(path):
                files.replace(path, str(uuid.uuid4()).encode())
        try:
            return uuid.UUID(path.read_text())
        except ValueError:
            raise CannotSave(f"{path} is damaged. Restore it, or choose another folder.") from None


def _result_file(folder: Path) -> Path:
    """Beside the pictures, the one JSON file. Raises InvalidRequest."""
    found = list(folder.glob("*.json"))
    if len(found) != 1:
        raise InvalidRequest(f"{folder} holds {len(found)} JSON files. Expected the result of a job.")
    return found[0]


def _difference(request: Request, folder: Path) -> str:
    """In what a finished job's request is another one; empty when it is the same."""
    try:
        made, asked = delivery.read(_result_file(folder)).request, request.values()
    except InvalidRequest:
        return "is no result of a batch."
    names = sorted(name for name in made.keys() | asked.keys() if made.get(name) != asked.get(name))
    return f"was made with another {', '.join(names)}." if names else ""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Errors of the disk in words."""
    try:
        yield
    except OSError as error:
        raise CannotSave(
            f"{path} could not be written: {error.strerror}. Make room or choose another folder, then run the batch "
            "again: it goes on where it ended."
        ) from None
