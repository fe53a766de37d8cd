"""What a server is: its versions, its device, the pack's nodes on it and the model files that they offer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from krea import VERSION
from krea.model_file.catalogue import Slot

from .connection import Connection, NotFound
from .errors import PackMissing
from .graph import LOADER_INPUTS, Graph
from .models import on_server
from .result import Server

UPDATE = "Update it: git pull in its folder below ComfyUI/custom_nodes, then restart ComfyUI."
INSTALL = (
    "Install it: git clone https://github.com/flux-krea/flux-krea into ComfyUI/custom_nodes, then restart ComfyUI. "
    "If it is there, ComfyUI's log says why it did not load."
)


class Status(BaseModel):
    """A server at this moment. pack is None where Flux Krea is not installed."""

    url: str
    comfyui: str
    pack: str | None
    client: str
    python: str
    pytorch: str
    device: str
    memory_free: int
    memory_total: int
    running: int
    pending: int


@dataclass(frozen=True)
class Host:
    """What does not change while a server runs, but for files that are copied to it."""

    comfyui: str
    pack: str
    device: str
    models: dict[Slot, list[str]]
    inputs: dict[str, set[str]] = field(default_factory=dict)  # node class -> inputs, as far as they were asked for

    def identity(self, url: str) -> Server:
        """The server as a result names it."""
        return Server(url=url, comfyui=self.comfyui, pack=self.pack, device=self.device)


async def look(connection: Connection) -> Host:
    """Asks a server what it is. Raises ServerUnreachable, PackMissing."""
    stats = await _stats(connection)
    pack, *loaders = await asyncio.gather(_pack(connection), *(_node(connection, name) for name in LOADER_INPUTS))
    if pack is None and not any(loaders):
        raise PackMissing(f"ComfyUI at {connection.url} has no Flux Krea nodes. {INSTALL}")
    if pack is None or not all(loaders):
        raise PackMissing(f"The Flux Krea pack on {connection.url} is older than this client ({VERSION}). {UPDATE}")
    info = dict(zip(LOADER_INPUTS, loaders, strict=True))
    return Host(stats["system"]["comfyui_version"], pack, _device(stats)["name"], on_server(info))


async def check(connection: Connection, host: Host, graph: Graph) -> None:
    """Makes sure that the server has every node and input of a graph. Raises PackMissing."""
    asked_for = {node["class_type"] for node in graph.values()}
    new = sorted(asked_for - host.inputs.keys())
    for name, info in zip(new, await asyncio.gather(*(_node(connection, name) for name in new)), strict=True):
        if info is not None:
            host.inputs[name] = {key for group in info["input"].values() for key in group}
    lacking = [
        f"{node['class_type']}.{key}" if node["class_type"] in host.inputs else node["class_type"]
        for node in graph.values()
        for key in node["inputs"]
        if key.partition(".")[0] not in host.inputs.get(node["class_type"], ())
    ]
    if lacking:
        names = ", ".join(dict.fromkeys(lacking))
        raise PackMissing(
            f"{connection.url} (ComfyUI {host.comfyui}, Flux Krea {host.pack}) lacks {names}, which this client "
            f"({VERSION}) needs. {UPDATE}"
        )


async def status(connection: Connection) -> Status:
    """A server at this moment. Raises ServerUnreachable."""
    stats = await _stats(connection)
    pack, queue = await asyncio.gather(_pack(connection), connection.get("/queue"))
    system, device = stats["system"], _device(stats)
    return Status(
        url=connection.url,
        comfyui=system["comfyui_version"],
        pack=pack,
        client=VERSION,
        python=system["python_version"].split()[0],
        pytorch=system["pytorch_version"],
        device=device["name"],
        memory_free=device["vram_free"],
        memory_total=device["vram_total"],
        running=len(queue["queue_running"]),
        pending=len(queue["queue_pending"]),
    )


async def _stats(connection: Connection) -> dict[str, Any]:
    try:
        stats = await connection.get("/system_stats")
    except NotFound:
        stats = None
    if not (isinstance(stats, dict) and "comfyui_version" in stats.get("system", ()) and stats.get("devices")):
        raise connection.no_comfyui()
    return stats


async def _pack(connection: Connection) -> str | None:
    try:
        return (await connection.get("/flux_krea"))["version"]
    except NotFound:
        return None


async def _node(connection: Connection, name: str) -> dict[str, Any] | None:
    try:
        return (await connection.get(f"/object_info/{name}")).get(name)
    except NotFound:
        return None


def _device(stats: dict[str, Any]) -> dict[str, Any]:
    return stats["devices"][0]
