"""One job on one ComfyUI: handed over once, watched to its end, found again after a lost connection or a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp

from .connection import Connection
from .errors import (
    AccessDenied,
    GraphRefused,
    InvalidRequest,
    JobFailed,
    JobInterrupted,
    KreaError,
    OutOfMemory,
    ServerUnreachable,
)
from .events import Event, Notice, Preview, Progress, Queued, Started
from .graph import Graph

SILENCE = 5.0  # s without a message, after which the server is asked; a proxy may have swallowed the last one
POLL = 0.5  # s between questions about a job of which the server tells nothing
RUNS = 2  # a job that takes the server down twice is not given to it a third time
CANCEL_TRIES = 4  # half a second apart
CANCEL_TIME = 5.0  # s to tell the server that a job is not wanted any more
_NO_MEMORY = ("out of memory", "can't allocate memory")  # as CUDA and the CPU's allocator say it
PICTURE_KINDS = {1: "image/jpeg", 2: "image/png"}


class Place(NamedTuple):
    """Where the server has a job.

    ahead: jobs before it. record: what is known of it once it is finished.
    """

    ahead: int = 0
    running: bool = False
    record: dict[str, Any] | None = None


class Job:
    """A graph under a job id, the `prompt_id` of ComfyUI, which makes a lost answer harmless: the id is looked up.

    Args:
        known: the server may have this job already, under an id that the caller chose. One that failed is run again.
        previews: ask for pictures of the steps.
        patience: seconds to wait for a server that does not answer any more.
    """

    def __init__(
        self, connection: Connection, graph: Graph, job_id: str, *, known: bool, previews: bool, patience: float
    ):
        self.connection = connection
        self.graph = graph
        self.id = job_id
        self.record: dict[str, Any] | None = None
        self._look_first = self._asked_again = known
        self._previews = previews
        self._patience = patience
        self._client_id = uuid.uuid4().hex
        self._runs = self._ahead = 0
        self._own = self._started = False

    async def events(self) -> AsyncIterator[Event]:
        """Hands the job over and yields what happens to it, until `record` is there.

        Closed or cancelled before that, it cancels the job on the server.
        Raises InvalidRequest (the id is that of another job), GraphRefused, ServerUnreachable, JobInterrupted,
        JobFailed (after two restarts of the server).
        """
        try:
            async with contextlib.aclosing(self._events()) as events:
                async for event in events:
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            if self.record is None:
                with contextlib.suppress(KreaError, asyncio.TimeoutError):  # who does not answer cannot be told
                    await asyncio.wait_for(self.cancel(), CANCEL_TIME)
            raise

    async def cancel(self) -> None:
        """Takes the job from the server's queue, or stops it between two steps."""
        await cancel(self.connection, self.id)

    async def _events(self) -> AsyncIterator[Event]:
        lost_since: float | None = None
        while self.record is None:
            socket = None
            try:
                socket = await self._socket()
                place = await self._first_look() if self._look_first else None
                if place is None:
                    if self._runs:
                        yield Notice(self.id, "The server does not know the job any more; it is handed over again.")
                    place = await self._hand_over()
                self._look_first, lost_since = True, None
                self.record = place.record
                if self.record is None:
                    self._ahead = place.ahead
                    yield Queued(self.id, place.ahead)
                    async for event in self._watched(socket):
                        yield event
            except AccessDenied:
                raise
            except ServerUnreachable as error:
                self._look_first = True
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    yield Notice(self.id, f"{error} Waiting for it.")
                if now - lost_since > self._patience:
                    raise
                await asyncio.sleep(1)
            finally:
                if socket is not None:
                    await socket.close()

    async def _socket(self) -> aiohttp.ClientWebSocketResponse | None:
        """The channel of events, or None where it cannot be had; then the server is asked from time to time."""
        try:
            socket = await self.connection.events(self._client_id)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return None
        # ComfyUI begins with the length of its queue. What else comes or ends there is seen when the job is watched.
        with contextlib.suppress(asyncio.TimeoutError, TypeError, ValueError, LookupError):
            told = await socket.receive_json(timeout=SILENCE)
            self._ahead = told["data"]["status"]["exec_info"]["queue_remaining"]
        return socket

    async def _first_look(self) -> Place | None:
        place = await self._place()
        if self._asked_again and place and place.record and not _succeeded(place.record):
            await self.connection.post("/history", {"delete": [self.id]})
            place = None
        self._asked_again = False
        return place

    async def _hand_over(self) -> Place:
        if self._runs == RUNS:
            raise JobFailed(
                f"{self.connection.url} has lost the job {RUNS} times: it was restarted while the job ran. Look at "
                "its log; a job too large for the machine's memory can end the server."
            )
        body = {"prompt": self.graph, "client_id": self._client_id, "prompt_id": self.id}
        if self._previews:
            body["extra_data"] = {"preview_method": "auto"}
        status, answer = await self.connection.hand_over(body)
        if status != 200 or answer.get("node_errors"):
            if status == 200:  # ComfyUI runs the outputs that it did not refuse
                await self.cancel()
            raise GraphRefused(_refusal(answer, self.graph))
        self._runs += 1
        self._own, self._started = True, False
        if self._look_first:
            return await self._only_one(answer["number"])
        return Place(self._ahead)

    async def _only_one(self, number: float) -> Place:
        """Takes our copy of the job back when another client handed the same one over before us."""
        running, pending = await self._queue()
        same = [item[0] for item in running + pending if item[1] == self.id]
        finished = await self._finished()
        if finished or min(same, default=number) < number:
            self._own = False
            await self.connection.post("/queue", {"delete": [self.id]})
        return Place(record=finished)

    async def _place(self) -> Place | None:
        """Where the job is; None: the server does not know it. Asked in the order in which a job moves on."""
        running, pending = await self._queue()
        record = await self._finished()
        items = [record["prompt"]] if record else [item for item in running + pending if item[1] == self.id]
        if not items:
            return None
        number, _, graph, *_ = items[0]
        if not self._own and _wiring(graph) != _wiring(self.graph):
            raise InvalidRequest(
                f"{self.connection.url} has another job under the id {self.id}: other settings or model files. Give "
                "this one an id of its own."
            )
        ahead = sum(item[0] < number for item in running + pending)
        return Place(ahead, running=items[0] in running, record=record)

    async def _queue(self) -> tuple[list, list]:
        queue = await self.connection.get("/queue")
        return queue["queue_running"], queue["queue_pending"]

    async def _finished(self) -> dict[str, Any] | None:
        return (await self.connection.get(f"/history/{self.id}")).get(self.id)

    async def _watched(self, socket: aiohttp.ClientWebSocketResponse | None) -> AsyncIterator[Event]:
        """What the server tells, and answers when asked, until the job is finished or lost, or the channel ends."""
        if socket is None:
            yield Notice(self.id, "No live connection to the server; asking for the result from time to time.")
        # The server tells of a job only the client that handed it over.
        silence = SILENCE if socket and self._own else POLL
        heard = time.monotonic()
        while True:
            message = await _received(socket, heard + silence - time.monotonic())
            if message is None:
                place = await self._place()
                heard = time.monotonic()
                if place is None and not self._started:
                    raise JobInterrupted("Somebody took the job from the server's queue.")
                if place is None or place.record:
                    self.record = place and place.record
                    return
                if place.running and not self._started:
                    self._started = True
                    yield Started(self.id)
                elif place.ahead != self._ahead:
                    self._ahead = place.ahead
                    yield Queued(self.id, place.ahead)
                continue
            if message.type is aiohttp.WSMsgType.BINARY:
                if self._previews and (preview := self._preview(message.data)):
                    yield preview
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                yield Notice(self.id, "The live connection to the server ended; looking for the job.")
                return
            told = _object(message.data)
            kind, data = told.get("type"), told.get("data")
            if not isinstance(data, dict) or data.get("prompt_id") != self.id:
                continue
            heard = time.monotonic()
            if kind == "execution_start" and not self._started:
                self._started = True
                yield Started(self.id)
            elif kind == "progress":
                yield Progress(self.id, data["node"], data["value"], data["max"])
            elif kind == "executing" and data["node"] is None:  # sent once the record is in the history
                self.record = await self._finished()
                return

    def _preview(self, data: bytes) -> Preview | None:
        """Reads ComfyUI's binary messages: 1 is a picture with its kind, 4 one with a JSON header (server.py)."""
        kind, second = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        if kind == 1:
            return Preview(self.id, data[8:], PICTURE_KINDS.get(second, "image/jpeg"))
        if kind == 4:
            about = _object(data[8 : 8 + second])
            if about and about.get("prompt_id", self.id) == self.id:
                return Preview(self.id, data[8 + second :], about.get("image_type", "image/jpeg"))
        return None


def _object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a message; an empty one for anything else, which custom nodes may send."""
    with contextlib.suppress(ValueError):
        if isinstance(told := json.loads(text), dict):
            return told
    return {}


async def _received(socket: aiohttp.ClientWebSocketResponse | None, seconds: float) -> aiohttp.WSMessage | None:
    """The next message of a channel, if there is a channel and a message in time."""
    seconds = max(seconds, 0.01)
    if socket is None:
        await asyncio.sleep(seconds)
        return None
    try:
        return await socket.receive(timeout=seconds)
    except asyncio.TimeoutError:
        return None


async def cancel(connection: Connection, job_id: str) -> None:
    """Takes a job from the server's queue, or stops it between two steps; harmless when it is over."""
    await connection.post("/queue", {"delete": [job_id]})
    for _ in range(CANCEL_TRIES):  # ComfyUI forgets an interrupt that comes just before a job's first node
        await connection.post("/interrupt", {"prompt_id": job_id})
        queue = await connection.get("/queue")
        if not any(item[1] == job_id for item in queue["queue_running"]):
            return
        await asyncio.sleep(POLL)


def outputs(record: dict[str, Any]) -> dict[str, Any]:
    """What the nodes of a finished job gave, by node id. Raises OutOfMemory, JobFailed, JobInterrupted."""
    if _succeeded(record):
        return record["outputs"]
    for kind, data in record["status"]["messages"]:
        if kind == "execution_interrupted":
            raise JobInterrupted("The job was cancelled on the server.")
        if kind == "execution_error":
            message = data.get("exception_message", "").strip()
            where = f"{data.get('node_type')} (node {data.get('node_id')})"
            if "OutOfMemory" in data.get("exception_type", "") or any(words in message for words in _NO_MEMORY):
                raise OutOfMemory(
                    f"{where}: the server's memory was too small. Ask for a smaller resolution or fewer pictures, or "
                    f"start ComfyUI with --lowvram. It said: {message}"
                )
            raise JobFailed(f"{where}: {message}")
    raise JobFailed("The server reports a failure without saying which.")


def _succeeded(record: dict[str, Any]) -> bool:
    return record["status"]["status_str"] == "success"


def _wiring(graph: Graph) -> dict[str, Any]:
    return {node: (each["class_type"], each["inputs"]) for node, each in graph.items()}


def _refusal(answer: dict[str, Any], graph: Graph) -> str:
    lines = []
    for node, found in (answer.get("node_errors") or {}).items():
        for error in found["errors"]:
            name = found.get("class_type") or graph[node]["class_type"]
            lines.append(f"  {name} (node {node}): {error['message']}: {error['details']}")
    error = answer.get("error") or {}
    words = [error.get("message"), error.get("details")] if isinstance(error, dict) else [str(error)]
    head = ": ".join(filter(None, words)) if not lines or error else "some nodes were refused"
    return "\n".join([f"ComfyUI refused the graph: {head}", *lines])
