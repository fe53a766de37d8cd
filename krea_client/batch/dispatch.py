"""Working off a job file: each worker at its own pace, each job to its end once, whoever ends in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CannotSave, KreaError, ModelsMissing, OutOfMemory, PackMissing, ServerUnreachable
from ..result import Result
from .folder import Folder, Given
from .jobs import BatchJob, read
from .report import BatchEvent, Failure, JobOver, Report, Share, WorkerNotice
from .worker import Worker

LOSSES = 3  # a job that lost its worker so often may be what ends them
PROBE = 2.0  # s between questions to a worker that is lost


async def run(
    jobs: Path | str,
    out: Path | str,
    workers: AbstractAsyncContextManager[Sequence[Worker]],
    on_event: Callable[[BatchEvent], None] = lambda event: None,
) -> Report:
    """Makes the pictures of a job file that are not in the folder yet.

    Args:
        jobs: see `jobs.read`.
        out: the folder; the same one goes on where an earlier run ended, however it ended.
        workers: from `servers` or `ray_pool.workers`; they start when there is something to do.
        on_event: called for each job that is over and each worker that is lost or back.

    Returns:
        The report, also written to report.json in the folder. Jobs that failed are in it; they stop nothing. When no
        worker is left or the disk is full, `stopped` says so.

    Raises InvalidRequest (lines that are wrong or changed; nothing was run) and CannotSave (no folder, or another run
    writes to it). Cancelled, it cancels the running jobs on their servers and keeps what is finished.
    """
    begun = time.monotonic()
    listed = read(Path(jobs))
    with Folder(Path(out)) as folder:
        listed = [folder.with_seed(job) for job in listed]
        left = folder.unfinished(listed)
        batch = _Batch(folder, left, len(listed), on_event)
        try:
            if left:
                async with workers as ready:
                    await batch.work(ready)
        except CannotSave as error:
            batch.report.stopped = Failure.of(error)
        finally:
            batch.end(time.monotonic() - begun)
        return batch.report


@dataclass(eq=False)
class _Task:
    """An unfinished job. refusals: by worker, from those that cannot do it."""

    job: BatchJob
    given: Given
    losses: int = 0
    refusals: dict[str, KreaError] = field(default_factory=dict)


class _Batch:
    def __init__(self, folder: Folder, jobs: list[BatchJob], total: int, on_event: Callable[[BatchEvent], None]):
        self.report = Report(skipped=total - len(jobs))
        self._folder, self._total, self._on_event = folder, total, on_event
        self._waiting = [_Task(job, folder.given(job)) for job in jobs]
        self._running = 0
        self._shares: dict[str, Share] = {}
        self._up: set[str] = set()
        self._lost: dict[str, ServerUnreachable] = {}  # their jobs are free for others
        self._given_up: set[str] = set()  # of those, for whom the run does not wait any more
        self._changed, self._over = asyncio.Event(), asyncio.Event()

    async def work(self, workers: Sequence[Worker]) -> None:
        """Until every job is over, or nobody is left who could do those that are not."""
        self._shares = {worker.name: Share(worker=worker.name) for worker in workers}
        await _first([self._over.wait(), *(self._serve(worker) for worker in workers)])
        if self._waiting:
            self.report.stopped = Failure.of(
                ServerUnreachable("\n".join(["No server is left:", *map(str, self._lost.values())]))
            )

    def end(self, seconds: float) -> None:
        """Completes the report and writes it."""
        report = self.report
        report.left = self._total - report.skipped - report.done - report.blocked - report.failed
        report.workers = list(self._shares.values())
        report.seconds = round(seconds, 3)
        report.pictures_per_minute = round(60 * report.pictures / max(seconds, 0.001), 2)
        try:
            self._folder.report(report)
        except CannotSave as error:
            report.stopped = report.stopped or Failure.of(error)

    async def _serve(self, worker: Worker) -> None:
        """Keeps a worker busy whenever it is there."""
        name = worker.name
        while True:
            try:
                await worker.ready()
            except ServerUnreachable as error:
                self._lose(name, error)
                self._given_up.add(name)
                self._tell()
                await asyncio.sleep(PROBE)
                continue
            if self._lost.pop(name, None):
                self._on_event(WorkerNotice(name, f"{name} is back."))
            self._given_up.discard(name)
            self._up.add(name)
            self._tell()
            await _all(self._lane(worker) for _ in range(worker.lanes))

    def _lose(self, name: str, error: ServerUnreachable) -> None:
        self._up.discard(name)
        if name not in self._lost:
            lost = "A server is lost" if name in str(error) else f"{name} is lost"
            self._on_event(WorkerNotice(name, f"{lost}: {error}"))
        self._lost[name] = error

    async def _lane(self, worker: Worker) -> None:
        """One job after the other, until the worker is lost."""
        while worker.name in self._up:
            if (task := self._next(worker.name)) is None:
                await self._changed.wait()
                continue
            self._waiting.remove(task)
            self._running += 1
            await self._try(task, worker)
            self._running -= 1  # after an error it counts on: that error is to end the run, not `_over`
            self._tell()

    async def _try(self, task: _Task, worker: Worker) -> None:
        task.given = Given(task.given.job_id, worker.name)
        folder = self._folder.give(task.job, task.given)
        try:
            result = await worker.make(task.job.request, task.given.job_id, folder)
        except asyncio.CancelledError:
            self._folder.take_back(task.job, task.given)
            raise
        except CannotSave:
            raise
        except ServerUnreachable as error:
            self._lose(worker.name, error)
            task.losses += 1
            if task.losses < LOSSES:
                self._waiting.insert(0, task)
            else:
                self._finish(task, worker, error=error)
        except (PackMissing, ModelsMissing, OutOfMemory) as error:  # another worker may have what this one lacks
            task.refusals[worker.name] = error
            if task.refusals.keys() >= self._shares.keys():
                self._finish(task, worker, error=error)
            else:
                task.given = Given(task.given.job_id)
                self._waiting.append(task)
        except KreaError as error:
            self._finish(task, worker, error=error)
        else:
            self._finish(task, worker, self._folder.finish(task.job, result))

    def _finish(
        self, task: _Task, worker: Worker, result: Result | None = None, error: KreaError | None = None
    ) -> None:
        report, share, job = self.report, self._shares[worker.name], task.job
        failure = error and Failure.of(error, job.name, job.line)
        if failure:
            report.failed += 1
            report.failures.append(failure)
        else:
            if result.status == "blocked":
                report.blocked += 1
            else:
                report.done += 1
            report.pictures += len(result.paths)
            share.pictures += len(result.paths)
            share.jobs += 1
        finished = report.skipped + report.done + report.blocked
        self._on_event(JobOver(job.name, worker.name, result, failure, finished, self._total))

    def _next(self, name: str) -> _Task | None:
        """The next job for a worker; first one that it was given before."""
        own = (task for task in self._waiting if task.given.worker == name)
        return next(own, None) or next((task for task in self._waiting if self._may(name, task)), None)

    def _may(self, name: str, task: _Task) -> bool:
        """Not a job that the worker cannot do, nor one that another, which is not lost, may have already."""
        holder = task.given.worker
        kept = holder != name and holder in self._shares and holder not in self._lost
        return name not in task.refusals and not kept

    def _tell(self) -> None:
        """Wakes who waits for a job, and ends the run when there is nothing left that could happen."""
        there = self._shares.keys() - self._given_up
        if not self._running and not any(self._may(name, task) for name in there for task in self._waiting):
            self._over.set()
        self._changed.set()
        self._changed = asyncio.Event()


async def _first(steps: Iterable[Coroutine]) -> None:
    """Until one of them ends, well or with an error; the others are cancelled."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _cancelled(tasks)


async def _all(steps: Iterable[Coroutine]) -> None:
    """Until all of them end, or one with an error; the others are then cancelled."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: Iterable[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
