"""Who makes the pictures of a batch, as the run sees it, and what every worker does with a job."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from ..client import AsyncKreaClient
from ..errors import JobFailed, JobInterrupted
from ..events import Finished, Queued
from ..request import Request
from ..result import Result

AHEAD = 2  # jobs that a worker has at once: its server paints one while the other is on its way there or back


class Worker(Protocol):
    """Takes jobs, `lanes` at once."""

    name: str
    """The address of its server, or another name that the next run gives it again."""

    lanes: int

    async def ready(self) -> None:
        """Once it can work. Raises ServerUnreachable; it is then asked again from time to time."""

    async def make(self, request: Request, job_id: str, folder: Path) -> Result:
        """Makes the pictures and writes them, with the result, into an empty folder.

        Cancelled, it cancels the job on its server. Raises any of `krea_client.errors`.
        """


def lanes_for(time_limit: float | None) -> int:
    """How many jobs a worker has at once: with a time limit one, which no other of the batch keeps waiting."""
    return AHEAD if time_limit is None else 1


def next_id(job_id: str) -> str:
    """The id under which a job is tried again; a server keeps what became of the earlier one."""
    return str(uuid.uuid5(uuid.UUID(job_id), "again"))


async def make(client: AsyncKreaClient, request: Request, job_id: str, folder: Path) -> Result:
    """`Worker.make` on a server. What failed under this id before, in an earlier run, is tried again under the next."""
    while True:
        ours = False
        try:
            async with aclosing(client.events(request, folder, job_id=job_id)) as events:
                async for event in events:
                    ours = ours or isinstance(event, Queued)
                    if isinstance(event, Finished):
                        return event.result
        except (JobFailed, JobInterrupted):
            if ours:
                raise
        for left_over in folder.iterdir():
            left_over.unlink()
        job_id = next_id(job_id)
