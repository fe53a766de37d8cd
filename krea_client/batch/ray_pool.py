"""Workers on many machines: Ray actors that each own a ComfyUI, given by its address or started by the actor.

Ray places the actors (by the resources they ask for), starts them again elsewhere when their process or machine goes,
and carries requests and pictures. Which actor gets which job stays with `dispatch`: a job whose actor is gone goes to
whoever is free, at once, where a task retry of Ray would wait for that actor.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from krea import files

from .. import references
from ..client import AsyncKreaClient
from ..connection import Connection, tls_context
from ..errors import CannotSave, ExtraMissing, KreaError, ServerUnreachable
from ..request import Request
from ..result import Result
from .comfy_process import START_LIMIT, ComfyProcess, check_command
from .folder import saving
from .jobs import with_pictures
from .worker import Worker, lanes_for, make

PLACE_LIMIT = 120.0  # s that Ray may take to find a place for an actor
CANCEL_LIMIT = 10.0  # s to wait for an actor that was told to cancel its job
ADDRESS_LIMIT = 5.0  # s in which a Ray cluster takes a connection
OBJECT_STORE = 256 * 2**20  # bytes of a Ray started here; what it carries are pictures
ROOM = 64 * 2**20  # bytes free that a worker's machine must have to be given a job; a picture of 4K is smaller


@asynccontextmanager
async def workers(
    urls: Iterable[str] = (),
    *,
    command: str | None = None,
    folder: str = ".",
    count: int = 1,
    options: Mapping[str, Any] | None = None,
    address: str | None = None,
    **settings: Any,
) -> AsyncIterator[list[Worker]]:
    """A worker for each address, and `count` workers that start a ComfyUI of their own.

    Args:
        command: starts ComfyUI; see `ComfyProcess`.
        folder: where it is run, on the machine of the worker.
        options: of Ray's actors that start a ComfyUI, such as {"num_gpus": 1}.
        address: of a Ray cluster, whose machines have this package with its extra "ray"; by default Ray is started
            here, or used as it is where the program has started it.
        settings: of `AsyncKreaClient`, but `tls`: the arguments of `tls_context`, for files on the worker's machine.

    Raises ExtraMissing, InvalidRequest (a command without a port), ServerUnreachable (no Ray at the address).
    """
    if command is not None:
        check_command(command)
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _start(ray, address)
    actors = []
    try:
        painter = ray.remote(max_restarts=-1, num_cpus=0)(_Painter)
        made: list[Worker] = []
        lanes = lanes_for(settings.get("time_limit"))
        for url in dict.fromkeys(urls):
            actors.append(painter.remote(url, None, settings))
            made.append(RayWorker(Connection(url).url, actors[-1], lanes))  # without a login
        for number in range(1, count + 1 if command else 1):
            actors.append(painter.options(**(options or {})).remote(None, (command, folder), settings))
            made.append(RayWorker(f"ray worker {number}", actors[-1], lanes))
        yield made
    finally:
        for actor in actors:
            ray.kill(actor)
        if ours:
            ray.shutdown()


class RayWorker:
    """A worker that is an actor somewhere."""

    def __init__(self, name: str, actor: Any, lanes: int):
        self.name = name
        self.lanes = lanes
        self._actor = actor

    async def ready(self) -> None:
        try:
            await asyncio.wait_for(self._placed(), PLACE_LIMIT + START_LIMIT)
        except asyncio.TimeoutError:
            raise ServerUnreachable(
                f"Ray has not started {self.name} within {PLACE_LIMIT + START_LIMIT:.0f} s. `ray status` says whether "
                "a machine of the cluster has what it asks for."
            ) from None

    async def _placed(self) -> None:
        """Once the actor answers; while Ray starts it again after its process or machine went, it is unavailable."""
        unavailable = _ray().exceptions.ActorUnavailableError
        while True:
            try:
                return await self._answer(self._actor.ready.remote())
            except ServerUnreachable as error:
                if not isinstance(error.__cause__, unavailable):
                    raise
            await asyncio.sleep(0.5)

    async def make(self, request: Request, job_id: str, folder: Path) -> Result:
        request = await _self_contained(request)
        result, made = await self._answer(self._actor.make.remote(request.values(), job_id))
        for name, data in made.items():
            with saving(folder / name):
                await asyncio.to_thread(files.create, folder / name, data)
        return Result.model_validate_json(result)

    async def _answer(self, reference: Any) -> Any:
        ray = _ray()
        try:
            return await reference
        except ray.exceptions.RayTaskError as error:  # raised by our code over there
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise ServerUnreachable(f"{self.name} is gone: {str(error).splitlines()[0]}") from error
        except asyncio.CancelledError:
            ray.cancel(reference)
            with suppress(ray.exceptions.RayError, KreaError, asyncio.TimeoutError):
                await asyncio.wait_for(reference, CANCEL_LIMIT)  # until its server has been told
            raise


class _Painter:
    """The actor."""

    def __init__(self, url: str | None, started: tuple[str, str] | None, settings: Mapping[str, Any]):
        settings = dict(settings)
        if tls := settings.pop("tls", None):
            settings["tls"] = tls_context(**tls)
        self._comfy = ComfyProcess(*started) if started else None
        self._keeping: asyncio.Task | None = None
        if self._comfy:
            # A job waits while its ComfyUI is started again.
            settings = {"patience": START_LIMIT} | settings
        self._client = AsyncKreaClient(url or self._comfy.url, **settings)

    async def ready(self) -> None:
        with _keeping():
            free = shutil.disk_usage(tempfile.gettempdir()).free
            if free < ROOM:  # else it would take job after job and keep none
                raise CannotSave(f"{free / 2**20:.0f} MiB are free, {ROOM / 2**20:.0f} are needed")
        if self._comfy:
            await self._comfy.ensure()
            if self._keeping is None or self._keeping.done():
                self._keeping = asyncio.ensure_future(self._comfy.keep())
        await self._client.server()

    async def make(self, values: dict[str, Any], job_id: str) -> tuple[str, dict[str, bytes]]:
        with _keeping(), tempfile.TemporaryDirectory() as folder:
            result = await make(self._client, Request.read(values), job_id, Path(folder))
            return result.model_dump_json(), {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@contextmanager
def _keeping() -> Iterator[None]:
    """An actor whose machine takes no files is lost to the batch as if it were gone; others do its jobs."""
    try:
        yield
    except (CannotSave, OSError) as error:
        raise ServerUnreachable(
            f"The machine {socket.gethostname()} does not take the pictures of its Ray worker ({error}). Make room in "
            "its folder for temporary files, or start Ray there with another one in TMPDIR."
        ) from None


async def _self_contained(request: Request) -> Request:
    """The request with the pictures of this disk in it, for a worker that does not see this disk."""
    carried = {}
    for image in request.images:
        if Path(image).is_absolute():  # else an address or a data URI; a job's paths are absolute
            name, data = await references.load(image)
            carried[image] = f"data:image/{name.rpartition('.')[2]};base64,{base64.b64encode(data).decode()}"
    return with_pictures(request, lambda image: carried.get(image, image))


def _reach(address: str) -> None:
    """Knocks at HOST:PORT, which Ray would do for ever where nobody is. Raises ServerUnreachable."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.port:  # "auto" has none
            socket.create_connection((parts.hostname, parts.port), ADDRESS_LIMIT).close()
    except (OSError, ValueError) as error:
        raise ServerUnreachable(
            f"No Ray cluster at {address} ({error}). Expected HOST:PORT, as `ray start --head` prints it there."
        ) from None


def _start(ray: Any, address: str | None) -> None:
    if address:
        _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent off the machine unasked
    os.environ.setdefault("RAY_worker_niceness", "0")  # a ComfyUI is not to wait for what else the machine does
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **local)
    except Exception as error:  # Ray raises no narrower type for all that can keep it from starting
        raise ServerUnreachable(f"Ray did not start ({address or 'on this machine'}): {error}") from None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ExtraMissing('Ray is not installed. Install it in the checkout: pip install ".[ray]"') from None
    return ray
