"""The clients: from a request to pictures on this disk."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

from krea.model_file.catalogue import Slot

from . import DEFAULT_URL, delivery, host, references
from .connection import Connection
from .errors import GraphRefused, InvalidRequest, ServerUnreachable, TimeLimit
from .events import Event, Finished
from .graph import build, slots
from .job import Job, cancel
from .models import Found, find, needed
from .request import Request
from .result import Result

PATIENCE = 60.0  # s that a server may stay away, as long as a restart with its models takes
_Value = TypeVar("_Value")


class AsyncKreaClient:
    """Makes pictures on the ComfyUI at a URL. Used as `async with`, or closed with `close`.

    Args:
        url: of ComfyUI, with the path prefix of a proxy where there is one.
        headers: sent with every request, for a proxy that wants to know who asks.
        tls: for https, from `krea_client.connection.tls_context`.
        models: the model files to use, by what they are for; by default the published ones that the server has.
        time_limit: seconds for one job, from its request to its files.
        patience: seconds to wait for a server that stops answering.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        models: Mapping[Slot, str] | None = None,
        time_limit: float | None = None,
        patience: float = PATIENCE,
    ):
        self._connection = Connection(url, headers, tls)
        self._models = dict(models or {})
        self._time_limit = time_limit
        self._patience = patience
        self._host: host.Host | None = None

    async def __aenter__(self) -> AsyncKreaClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection. Jobs go on."""
        await self._connection.close()

    @property
    def url(self) -> str:
        """The server's address, without a login."""
        return self._connection.url

    async def generate(self, request: Request, out: Path | str = ".", *, job_id: str | None = None) -> Result:
        """Makes the pictures of a request and writes them into a folder; see `events`."""
        result = None
        async with aclosing(self.events(request, out, job_id=job_id)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    result = event.result
        return result

    async def events(
        self, request: Request, out: Path | str = ".", *, job_id: str | None = None, previews: bool = False
    ) -> AsyncIterator[Event]:
        """As `generate`, and tells what happens meanwhile. Closed early, it cancels the job on the server.

        Args:
            job_id: a UUID. The same request under the same id is run once, whoever asks and however often, unless it
                failed or was cancelled.
            previews: yield the picture as it grows, before the content filter has seen it.

        Raises any of `krea_client.errors`.
        """
        begun = time.monotonic()
        job: Job | None = None
        known, job_id = job_id is not None, _checked(job_id or str(uuid.uuid4()))
        if request.seed is None:  # it follows from the id, so that asking again under the id asks for the same
            request = request.changed(seed=int(job_id[-8:], 16))
        await asyncio.to_thread(delivery.prepare, Path(out))

        async def limited(step: Coroutine[Any, Any, _Value]) -> _Value:
            left = None if self._time_limit is None else self._time_limit - (time.monotonic() - begun)
            try:
                return await asyncio.wait_for(step, left)
            except asyncio.TimeoutError:
                if job and job.record:
                    raise TimeLimit(
                        f"The job is finished on {self.url}, but its pictures were not here within "
                        f"{self._time_limit:g} s. Run a batch again as it was; ask for a single job again with "
                        f"--job-id {job_id} and more time; nothing is painted twice."
                    ) from None
                raise TimeLimit(
                    f"The job did not finish within {self._time_limit:g} s and was cancelled on {self.url}. Give it "
                    "more time, or ask for fewer steps, fewer pictures or a smaller resolution."
                ) from None

        server, names, graph = await limited(self._graph(request, job_id))
        job = Job(self._connection, graph, job_id, known=known, previews=previews, patience=self._patience)
        try:
            async with aclosing(job.events()) as happenings:
                while (event := await limited(anext(happenings, None))) is not None:
                    yield event
        except GraphRefused:  # perhaps of a model file that has gone since the server was looked at
            needed((await limited(self._known_host(fresh=True))).models, self._models, slots(request))
            raise
        result = await limited(
            delivery.deliver(
                self._connection, job, request, Path(out), server.identity(self.url), names, begun, self._patience
            )
        )
        yield Finished(job_id, result)

    async def cancel(self, job_id: str) -> None:
        """Cancels a job; harmless when it is over."""
        await cancel(self._connection, job_id)

    async def models(self) -> list[Found]:
        """The model files that the server has or lacks."""
        return find((await self._known_host(fresh=True)).models, self._models)

    async def server(self) -> host.Status:
        """Versions, device and queue of the server."""
        return await host.status(self._connection)

    async def _known_host(self, fresh: bool = False) -> host.Host:
        if self._host is None or fresh:
            self._host = await host.look(self._connection)
        return self._host

    async def _graph(self, request: Request, job_id: str):
        server = await self._known_host()
        if self._missing(server, request):  # perhaps they have come since
            server = await self._known_host(fresh=True)
        names = needed(server.models, self._models, slots(request))
        pictures = {image: await self._upload(image) for image in request.images}
        graph = build(request, names, pictures, f"flux_krea/{job_id}")
        await host.check(self._connection, server, graph)
        return server, {slot.value: name for slot, name in names.items()}, graph

    def _missing(self, server: host.Host, request: Request) -> bool:
        return any(each.file is None for each in find(server.models, self._models, slots(request)))

    async def _upload(self, image: str) -> str:
        return await self._connection.upload(*await references.load(image), "flux_krea")


class KreaClient:
    """The same for programs without asyncio; usable in notebooks, too. Used as `with`, or closed with `close`."""

    def __init__(self, url: str = DEFAULT_URL, **settings: Any):
        self._async = AsyncKreaClient(url, **settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="krea-client", daemon=True)
        self._thread.start()

    __init__.__doc__ = AsyncKreaClient.__doc__

    def __enter__(self) -> KreaClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. Jobs go on."""
        if not self._loop.is_closed():
            self._wait(self._async.close())
            self._wait(self._loop.shutdown_asyncgens())  # events that were not read to their end
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def url(self) -> str:
        """The server's address, without a login."""
        return self._async.url

    def generate(self, request: Request, out: Path | str = ".", *, job_id: str | None = None) -> Result:
        """Makes the pictures of a request and writes them into a folder. Ctrl-C cancels the job on the server."""
        return self._wait(self._async.generate(request, out, job_id=job_id))

    def events(
        self, request: Request, out: Path | str = ".", *, job_id: str | None = None, previews: bool = False
    ) -> Iterator[Event]:
        """As `generate`, and tells what happens meanwhile; see `AsyncKreaClient.events`."""
        events = self._async.events(request, out, job_id=job_id, previews=previews)
        try:
            while (event := self._wait(anext(events, None))) is not None:
                yield event
        finally:
            self._wait(events.aclose())

    def cancel(self, job_id: str) -> None:
        """Cancels a job; harmless when it is over."""
        self._wait(self._async.cancel(job_id))

    def models(self) -> list[Found]:
        """The model files that the server has or lacks."""
        return self._wait(self._async.models())

    def server(self) -> host.Status:
        """Versions, device and queue of the server."""
        return self._wait(self._async.server())

    def _wait(self, step: Coroutine[Any, Any, _Value]) -> _Value:
        if self._loop.is_closed():
            step.close()
            raise ServerUnreachable(f"The connection to {self.url} has been closed.")

        tasks: list[asyncio.Task] = []

        async def awaited() -> _Value:  # anext() gives an awaitable that is no coroutine
            tasks.append(asyncio.current_task())
            return await step

        try:
            return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()
        except BaseException:
            # Ctrl-C, perhaps before the line above knew its own future: the other thread cancels what it does, on the
            # server too, and is waited for, since events that are still awaited cannot be closed.
            with suppress(BaseException):
                asyncio.run_coroutine_threadsafe(_cancelled(tasks), self._loop).result(10)
            raise


async def _cancelled(tasks: list[asyncio.Task]) -> None:
    """Cancels tasks, where they are not over, and returns when they have taken note of it."""
    for task in tasks:
        task.cancel()
        await asyncio.wait([task], timeout=8)


def _checked(job_id: str) -> str:
    try:
        if str(uuid.UUID(job_id)) == job_id:
            return job_id
    except ValueError:
        pass
    raise InvalidRequest(f"The job id is {job_id!r}. Expected a UUID in lower case, as Python's uuid.uuid4() makes.")
