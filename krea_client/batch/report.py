"""What a batch tells: each job that is over, each server that is lost or back, and a report at the end."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, Field

from ..errors import KreaError
from ..result import Result


class Failure(BaseModel):
    """Why a job has no result, or why the whole run stopped early (then without a job)."""

    job: str | None = None
    line: int | None = None
    kind: str = Field(description="The kind of error, as krea_client.errors names it.")
    message: str
    exit_code: int

    @classmethod
    def of(cls, error: KreaError, job: str | None = None, line: int | None = None) -> Failure:
        return cls(job=job, line=line, kind=error.kind, message=str(error), exit_code=error.exit_code)


class Share(BaseModel):
    """What one worker did in this run."""

    worker: str
    jobs: int = 0
    pictures: int = 0


class Report(BaseModel):
    """A run over a job file."""

    done: int = 0
    blocked: int = Field(default=0, description="Finished jobs of which the content filter let no picture through.")
    failed: int = Field(default=0, description="Tried without success; the next run tries them again.")
    skipped: int = Field(default=0, description="Finished by an earlier run.")
    left: int = Field(default=0, description="Not tried; the next run does.")
    pictures: int = 0
    seconds: float = 0.0
    pictures_per_minute: float = 0.0
    workers: list[Share] = []
    failures: list[Failure] = []
    stopped: Failure | None = Field(default=None, description="Why the run ended before every job was tried.")

    @property
    def exit_code(self) -> int:
        """Of the command: 0, else that of the error that stopped the run, else of the first failure."""
        return next((each.exit_code for each in [self.stopped, *self.failures] if each), 0)

    def __str__(self) -> str:
        """The report for people."""
        counts = ("done", "blocked", "failed", "skipped", "left")
        said = {"skipped": "finished before", "left": "left for the next run"}
        lines = [", ".join(f"{getattr(self, name)} {said.get(name, name)}" for name in counts)]
        lines.append(f"{self.pictures} pictures in {self.seconds:.1f} s, {self.pictures_per_minute:.1f} a minute")
        lines += [f"  {each.worker}: {each.jobs} jobs, {each.pictures} pictures" for each in self.workers]
        lines += [f"{each.job} (line {each.line}) failed: {each.message}" for each in self.failures]
        if self.stopped:
            lines.append(f"Stopped early: {self.stopped.message}")
        return "\n".join(lines)


@dataclass(frozen=True)
class JobOver:
    """A job ended in this run, with a result or a failure. finished: jobs of the file that have a result by now."""

    job: str
    worker: str
    result: Result | None
    failure: Failure | None
    finished: int
    total: int


@dataclass(frozen=True)
class WorkerNotice:
    """A worker is lost or back."""

    worker: str
    text: str


BatchEvent = JobOver | WorkerNotice
