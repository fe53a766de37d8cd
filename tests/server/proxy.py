"""A proxy in front of a ComfyUI that treats what passes as a test tells it."""

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web

Forward = Callable[..., Awaitable[web.StreamResponse]]
Rule = Callable[[web.Request, Forward], Awaitable[web.StreamResponse]]


async def pass_on(request: web.Request, forward: Forward) -> web.StreamResponse:
    return await forward()


class Proxy:
    """Forwards HTTP and WebSockets to `target`, while the context is entered.

    Args:
        rule: gets each request and how to forward it (with another body, if wanted), and gives the answer.
        prefix: the path before that of ComfyUI.
        tls: a context to speak https with.
    """

    def __init__(self, target: str, rule: Rule = pass_on, prefix: str = "", tls: ssl.SSLContext | None = None):
        self.target = target
        self.rule = rule
        self.prefix = prefix
        self.paths: list[str] = []
        self._tls = tls
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}{self.prefix}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self) -> int:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        return self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if not request.path.startswith(self.prefix + "/"):
            return web.Response(status=404)
        path = request.path_qs.removeprefix(self.prefix)
        self.paths.append(path)
        body = await request.read()

        async def forward(changed: bytes = body) -> web.StreamResponse:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._websocket(request, path)
            kind = {key: value for key, value in request.headers.items() if key == "Content-Type"}
            try:
                async with self._session.request(request.method, self.target + path, data=changed, headers=kind) as got:
                    return web.Response(status=got.status, body=await got.read(), content_type=got.content_type)
            except aiohttp.ClientError:  # as nginx does
                return web.Response(status=502)

        return await self.rule(request, forward)

    async def _websocket(self, request: web.Request, path: str) -> web.StreamResponse:
        try:
            behind = await self._session.ws_connect(self.target + path, max_msg_size=0)
        except aiohttp.ClientError:
            return web.Response(status=502)
        ahead = web.WebSocketResponse(max_msg_size=0)
        await ahead.prepare(request)

        async def pump(source, sink):
            async for message in source:
                await (sink.send_str if message.type is aiohttp.WSMsgType.TEXT else sink.send_bytes)(message.data)

        tasks = [asyncio.create_task(pump(*ends)) for ends in ((behind, ahead), (ahead, behind))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(behind.close(), ahead.close())
        return ahead


async def drop(request: web.Request) -> web.StreamResponse:
    """No answer: the connection is cut."""
    request.transport.abort()
    return web.Response()


async def cut(request: web.Request, answer: web.Response, declared: bool = True) -> web.StreamResponse:
    """Half of an answer; with its length declared, a client can know that it is half."""
    half = answer.body[: len(answer.body) // 2]
    if not declared:
        return web.Response(status=answer.status, body=half, content_type=answer.content_type)
    response = web.StreamResponse(status=answer.status, headers={"Content-Length": str(len(answer.body))})
    await response.prepare(request)
    await response.write(half)
    request.transport.abort()
    return response


def changing(change: Callable[[dict], None]) -> Rule:
    """A rule: the graph is changed on its way."""

    async def rule(request, forward):
        if request.path != "/prompt":
            return await forward()
        body = await request.json()
        change(body["prompt"])
        return await forward(json.dumps(body).encode())

    return rule
