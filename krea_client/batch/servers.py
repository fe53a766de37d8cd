"""Workers that are servers with an address of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from ..client import AsyncKreaClient
from ..request import Request
from ..result import Result
from .worker import Worker, lanes_for, make


@asynccontextmanager
async def servers(urls: Iterable[str], **settings: Any) -> AsyncIterator[list[Worker]]:
    """A worker for each address. settings: of `AsyncKreaClient`."""
    async with AsyncExitStack() as stack:
        clients = [AsyncKreaClient(url, **settings) for url in dict.fromkeys(urls)]
        lanes = lanes_for(settings.get("time_limit"))
        yield [Server(await stack.enter_async_context(client), lanes) for client in clients]


class Server:
    """A worker that is a client's server."""

    def __init__(self, client: AsyncKreaClient, lanes: int):
        self.name = client.url
        self.lanes = lanes
        self._client = client

    async def ready(self) -> None:
        await self._client.server()

    async def make(self, request: Request, job_id: str, folder: Path) -> Result:
        return await make(self._client, request, job_id, folder)
