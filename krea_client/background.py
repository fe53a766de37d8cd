"""Jobs that outlive the call that began them: waited for by several calls, cancelled, found again after a restart."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from krea import files

from . import delivery
from .client import AsyncKreaClient
from .errors import CannotSave, InvalidRequest, KreaError, ServerUnreachable
from .events import Event, Finished, Notice, Progress, Queued
from .graph import SAMPLER
from .request import Request
from .result import Result

UNFINISHED = "unfinished"  # folder of the requests whose pictures have not been delivered
TICK = 0.5  # s between two looks at a job that is waited for


class Running(BaseModel):
    """A job that is not finished."""

    status: Literal["running"] = "running"
    job_id: str
    jobs_ahead: int = Field(default=0, description="Jobs that the server does first; 0 once it runs.")
    step: int = Field(default=0, description="Steps done.")
    steps: int | None = Field(default=None, description="Steps in all, known once the first is done.")
    notice: str | None = Field(default=None, description="What hinders it, such as a lost connection.")

    def __str__(self) -> str:
        if self.notice:
            return self.notice
        if self.steps:
            return f"Step {self.step} of {self.steps}."
        return f"Waiting, {self.jobs_ahead} jobs come first." if self.jobs_ahead else "Preparing."

    def after(self, event: Event) -> Running:
        """The same job once something has happened to it."""
        news: dict[str, Any] = {}
        if isinstance(event, Queued):
            news = {"jobs_ahead": event.ahead, "notice": None}
        elif isinstance(event, Notice):
            news = {"notice": event.text}
        elif isinstance(event, Progress) and event.node == SAMPLER:
            news = {"jobs_ahead": 0, "step": event.step, "steps": event.steps, "notice": None}
        return self.model_copy(update=news)


class Cancelled(BaseModel):
    """A job that was cancelled; it gives no pictures."""

    status: Literal["cancelled"] = "cancelled"
    job_id: str

    def __str__(self) -> str:
        return f"The job {self.job_id} was cancelled."


class Failed(BaseModel):
    """What went wrong, and what to do."""

    status: Literal["failed"] = "failed"
    kind: str = Field(description="A word for programs: invalid_request, server_unreachable, models_missing, ...")
    message: str
    job_id: str | None = None

    @classmethod
    def by(cls, error: KreaError, job_id: str | None = None) -> Failed:
        """The answer that tells of an error."""
        return cls(kind=error.kind, message=str(error), job_id=job_id)

    def __str__(self) -> str:
        return self.message


Answer = Result | Running | Cancelled | Failed


def answer_schema() -> dict[str, Any]:
    """The JSON schema of every answer about a job; its `status` says which one it is."""
    return {"type": "object"} | TypeAdapter(Answer).json_schema(mode="serialization")


@dataclass
class _Work:
    """A job that this process watches, or has watched."""

    running: Running
    task: asyncio.Task[Result | Failed] | None = None


class Jobs:
    """The jobs of one client, whose files go into one folder.

    A request lies in the folder's UNFINISHED until its pictures are there, so that a job is found again by its id when
    this process was restarted: the server has it still, or runs it once more.
    """

    def __init__(self, client: AsyncKreaClient, out: Path):
        self._client = client
        self._out = out
        self._works: dict[str, _Work] = {}
        self._stopping: set[asyncio.Task] = set()

    async def begin(self, request: Request) -> str:
        """Starts a job; its id. Raises CannotSave."""
        job_id = str(uuid.uuid4())
        await asyncio.to_thread(self._note, job_id, request)
        self._start(job_id, request)
        return job_id

    async def wait(self, job_id: str, seconds: float, tell: Callable[[Running], Awaitable[None]]) -> Answer:
        """The job's end, or how far it is when the time is up.

        tell: called when the job has got on. Raises InvalidRequest for a job that nobody knows.
        """
        found = await self._find(job_id)
        if isinstance(found, Result):
            return found
        end, told = time.monotonic() + seconds, None
        while not found.task.done() and (left := end - time.monotonic()) > 0:
            if found.running != told:
                told = found.running
                await tell(told)
            await asyncio.wait({found.task}, timeout=min(left, TICK))
        if not found.task.done():
            return found.running
        return Cancelled(job_id=job_id) if found.task.cancelled() else found.task.result()

    async def cancel(self, job_id: str) -> Answer:
        """Cancels a job; the result of one that is over. Raises InvalidRequest, ServerUnreachable."""
        found = await self._find(job_id)
        if isinstance(found, Result):
            return found
        if not found.task.done():
            self.stop(job_id)
            # A job of before a restart may be on the server, though nothing here has got as far as to look for it.
            await self._client.cancel(job_id)
            await asyncio.wait({found.task})
        return Cancelled(job_id=job_id) if found.task.cancelled() else found.task.result()

    def stop(self, job_id: str) -> None:
        """Cancels a job that this process watches, without waiting until the server knows."""
        task = self._works[job_id].task
        if task.cancel():
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
            self._file(job_id).unlink(missing_ok=True)

    async def close(self) -> None:
        """Ends the client's connection. Jobs go on on the server, but for those that were cancelled."""
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=10)
        await self._client.close()  # first, so that the end of a task does not reach the server any more
        tasks = [work.task for work in self._works.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, job_id: str, request: Request, known: bool = False) -> _Work:
        work = _Work(Running(job_id=job_id))
        work.task = asyncio.create_task(self._watch(job_id, request, work, known))
        self._works[job_id] = work
        return work

    async def _watch(self, job_id: str, request: Request, work: _Work, known: bool) -> Result | Failed:
        """known: the server may have the job already."""
        try:
            async with aclosing(self._client.events(request, self._out, job_id=job_id)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        answer = event.result
                    known = True
                    work.running = work.running.after(event)
        except KreaError as error:
            answer = Failed.by(error, job_id)
            if known and isinstance(error, (ServerUnreachable, CannotSave)):
                return answer  # the pictures can still be had: asked again, the job is looked for again
        self._file(job_id).unlink(missing_ok=True)
        return answer

    async def _find(self, job_id: str) -> _Work | Result:
        work = self._works.get(job_id)
        if work is None or work.task.done():
            request = await asyncio.to_thread(self._noted, job_id)
            if request is not None and self._works.get(job_id) is work:
                self._start(job_id, request, known=True)
        return self._works.get(job_id) or await asyncio.to_thread(self._delivered, job_id)

    def _file(self, job_id: str) -> Path:
        return self._out / UNFINISHED / f"{job_id}.json"

    def _note(self, job_id: str, request: Request) -> None:
        file = self._file(job_id)
        delivery.prepare(file.parent)
        try:
            files.create(file, json.dumps(request.values()).encode())
        except OSError as error:
            raise CannotSave(
                f"{file} could not be written: {error.strerror}. Make room or choose another folder."
            ) from None

    def _noted(self, job_id: str) -> Request | None:
        with suppress(FileNotFoundError):
            return Request.read(json.loads(self._file(job_id).read_bytes()))
        return None

    def _delivered(self, job_id: str) -> Result:
        for path in self._out.glob("krea_*.json"):
            with suppress(InvalidRequest):
                result = delivery.read(path)
                if result.job_id == job_id:
                    return result
        raise InvalidRequest(
            f"No job {job_id} is known here, and no result of it lies in {self._out}. It failed, was cancelled, or "
            "belongs to another folder. Ask for the picture again."
        )
