"""What happens to a job, as it happens."""

from __future__ import annotations

from dataclasses import dataclass

from .result import Result


@dataclass(frozen=True)
class Queued:
    """The server has the job. ahead: how many jobs come before it."""

    job_id: str
    ahead: int


@dataclass(frozen=True)
class Started:
    """The server works on the job."""

    job_id: str


@dataclass(frozen=True)
class Progress:
    """A step is done. node: the id in the graph, such as "sampler"."""

    job_id: str
    node: str
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """The picture as it looks so far, as JPEG or PNG. It comes before the content filter has seen anything."""

    job_id: str
    image: bytes
    mime_type: str


@dataclass(frozen=True)
class Notice:
    """Something that a person wants to know while waiting, such as a lost connection."""

    job_id: str
    text: str


@dataclass(frozen=True)
class Finished:
    """The job is done and its pictures are on this disk; always the last event."""

    job_id: str
    result: Result


Event = Queued | Started | Progress | Preview | Notice | Finished
