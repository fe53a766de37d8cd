"""The part of ComfyUI's HTTP and WebSocket interface that the demo, the tests and the benchmarks use."""

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

Graph = dict[str, dict[str, Any]]
"""A workflow in API format: node id -> {"class_type": ..., "inputs": {...}}."""


class PromptRejected(RuntimeError):
    """ComfyUI refused a graph, or a part of it; the message lists what it said of each node."""


class RunFailed(RuntimeError):
    """A graph was accepted but did not finish: a node raised an error, or the run was interrupted."""


class Event(NamedTuple):
    """A message of the running server. ``image`` holds the bytes of a preview (JPEG or PNG)."""

    type: str
    data: dict[str, Any]
    image: bytes | None = None


class ComfyClient:
    """Talks to the ComfyUI at ``url``."""

    def __init__(self, url: str):
        self.url = url
        self.client_id = uuid.uuid4().hex

    def request(self, path: str, body: dict[str, Any] | None = None, timeout: float = 30) -> bytes:
        """The answer to a GET, or to a POST when a body is given. Raises urllib.error.URLError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=timeout) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return json.loads(self.request(path))

    def submit(self, graph: Graph) -> str:
        """Queues a graph and returns its prompt id. Raises PromptRejected when any node of it is refused."""
        try:
            answer = json.loads(self.request("/prompt", {"prompt": graph, "client_id": self.client_id}))
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
        # An answer of 200 may still carry errors: ComfyUI then runs only the other outputs.
        if answer.get("error") or answer.get("node_errors"):
            if "prompt_id" in answer:
                self.request("/queue", {"delete": [answer["prompt_id"]]})
                self.request("/interrupt", {"prompt_id": answer["prompt_id"]})
            raise PromptRejected(_explain(answer, graph))
        return answer["prompt_id"]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The record of a finished prompt, or None while it is not finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id: str, timeout: float = 300) -> dict[str, Any]:
        """The record of a prompt once it has finished well. Raises RunFailed or TimeoutError."""
        deadline = time.monotonic() + timeout
        while (record := self.history(prompt_id)) is None:
            if time.monotonic() > deadline:
                self.interrupt()
                raise TimeoutError(f"ComfyUI did not finish the graph within {timeout:.0f} s.")
            time.sleep(0.1)
        if record["status"]["status_str"] != "success":
            raise RunFailed(_failure(record["status"]["messages"]))
        return record

    def run(self, graph: Graph, timeout: float = 300) -> dict[str, Any]:
        """Queues a graph, waits for it and returns its record."""
        return self.wait(self.submit(graph), timeout)

    def events(self, graph: Graph) -> Iterator[Event]:
        """Queues a graph and yields the server's messages about it, previews included, until it has ended."""
        import asyncio

        loop = asyncio.new_event_loop()
        stream = self._events(graph)
        try:
            while (event := loop.run_until_complete(anext(stream, None))) is not None:
                yield event
        finally:
            for task in asyncio.all_tasks(loop):  # Ctrl-C leaves the wait for the next message behind
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    loop.run_until_complete(task)
            loop.run_until_complete(stream.aclose())
            loop.close()

    async def _events(self, graph: Graph):
        import aiohttp

        address = f"{self.url}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            prompt_id = self.submit(graph)
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    if (event := _preview(message.data)) is not None:
                        yield event
                    continue
                event = Event(*(json.loads(message.data)[key] for key in ("type", "data")))
                if event.data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                yield event
                if event.type in ("execution_success", "execution_error", "execution_interrupted"):
                    return
            raise RunFailed("The connection to ComfyUI ended before the graph did.")

    def view(self, image: dict[str, str]) -> bytes:
        """The file that a record's output names: {"filename", "subfolder", "type"}."""
        return self.request("/view?" + urllib.parse.urlencode(image))

    def object_info(self) -> dict[str, Any]:
        """Every node that the server offers, by node id."""
        return self.get("/object_info")

    def interrupt(self) -> None:
        """Stops the running prompt."""
        self.request("/interrupt", {})


def images_of(record: dict[str, Any]) -> list[dict[str, str]]:
    """The saved images of a record, in the order of the nodes; previews are left out."""
    images = [image for output in record["outputs"].values() for image in output.get("images", [])]
    return [image for image in images if image["type"] == "output"]


def _preview(data: bytes) -> Event | None:
    """Reads a binary message: a kind, then for previews a JSON header with its length, then the picture."""
    if int.from_bytes(data[:4], "big") != 4:
        return None
    end = 8 + int.from_bytes(data[4:8], "big")
    return Event("preview", json.loads(data[8:end]), data[end:])


def _explain(answer: dict[str, Any], graph: Graph) -> str:
    lines = []
    for node_id, found in answer.get("node_errors", {}).items():
        for error in found["errors"]:
            name = found.get("class_type") or graph[node_id]["class_type"]
            lines.append(f"  node {node_id} ({name}): {error['message']}: {error['details']}")
    error = answer.get("error") or {}
    head = error.get("message", "Some nodes were refused") if isinstance(error, dict) else str(error)
    details = error.get("details", "") if isinstance(error, dict) and not lines else ""
    return "\n".join(["ComfyUI refused the graph: " + ": ".join(filter(None, (head, details))), *lines])


def _failure(messages: list[tuple[str, dict[str, Any]]]) -> str:
    for kind, data in messages:
        if kind == "execution_error":
            return f"{data['node_type']} (node {data['node_id']}): {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return "The run was interrupted."
    return "ComfyUI reported a failure without saying which."
