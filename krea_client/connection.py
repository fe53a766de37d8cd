"""HTTP and WebSocket to one ComfyUI, through whatever lies between: retries, errors in words, no secrets in them."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import aiohttp

from .errors import AccessDenied, InvalidRequest, ServerUnreachable

TRIES = 4
PAUSE = 0.25  # s before the second try, doubled each time
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)
_LATER = (429, 502, 503, 504)  # a proxy's way to say that its server is not there at this moment


class Connection:
    """A session with the ComfyUI at a URL, which may have a path in front (a proxy's prefix).

    Args:
        headers: sent with every request, the WebSocket's included; never logged.
        tls: for https: a context from `tls_context`.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None):
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidRequest(
                f"The server's address is {_without_login(url)!r}. Expected http://HOST:PORT or https://HOST/PATH."
            )
        netloc = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        basic = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
        self._options = {"headers": basic | dict(headers or {}), "trust_env": True}
        self._tls = True if tls is None else tls
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, **query: str) -> Any:
        """The JSON at a path. Raises ServerUnreachable, AccessDenied, LookupError (404)."""
        return self._json((await self._ask("GET", path + (f"?{urlencode(query)}" if query else "")))[1])

    async def file(self, path: str, **query: str) -> bytes:
        """The whole file at a path. Raises as `get`."""
        return (await self._ask("GET", f"{path}?{urlencode(query)}"))[1]

    async def post(self, path: str, body: Any, once: bool = False) -> tuple[int, Any]:
        """Status and JSON of the answer to a JSON body.

        Args:
            once: do not send it again when the answer is lost, for what must not happen twice.
        """
        status, data = await self._ask("POST", path, json=body, allowed=(400,), tries=1 if once else TRIES)
        return status, self._json(data) if data else None

    async def upload(self, name: str, data: bytes, subfolder: str) -> str:
        """Puts a picture into the server's input folder; its name there, with the subfolder."""

        def form() -> aiohttp.FormData:
            fields = aiohttp.FormData({"type": "input", "subfolder": subfolder})
            fields.add_field("image", data, filename=name)
            return fields

        stored = self._json((await self._ask("POST", "/upload/image", form=form))[1])
        return "/".join(filter(None, (stored.get("subfolder"), stored["name"])))

    async def events(self, client_id: str) -> aiohttp.ClientWebSocketResponse:
        """The WebSocket on which ComfyUI tells a client of its jobs. Raises aiohttp.ClientError, TimeoutError."""
        socket = await self._session_open().ws_connect(
            f"{self.url}/ws?clientId={client_id}",
            ssl=self._tls,
            heartbeat=10,
            max_msg_size=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=2),
        )
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        return socket

    def no_comfyui(self, answer: bytes = b"") -> ServerUnreachable:
        """The error that something answers which is no ComfyUI."""
        said = f" (it says {answer[:80].decode(errors='replace')!r})" if answer else ""
        return ServerUnreachable(f"{self.url} answers, but not as ComfyUI does{said}. Check the address.")

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise self.no_comfyui(data) from None

    def _session_open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=REQUEST_TIMEOUT, **self._options)
        return self._session

    async def _ask(
        self, method: str, path: str, allowed=(), form=None, tries: int = TRIES, **options: Any
    ) -> tuple[int, bytes]:
        """Status and body of one whole answer; asked again while there is none."""
        trouble = ""
        for attempt in range(tries):
            if attempt:
                logging.getLogger(__name__).debug("%s %s: %s; trying again", method, path.partition("?")[0], trouble)
                await asyncio.sleep(PAUSE * 2 ** (attempt - 1))
            if form is not None:
                options["data"] = form()  # a form is used up by sending it
            try:
                async with self._session_open().request(
                    method, self.url + path, ssl=self._tls, allow_redirects=False, **options
                ) as answer:
                    data = await answer.read()
                    if answer.status not in _LATER:
                        return self._checked(answer, data, path, allowed)
                    trouble = f"HTTP {answer.status}"
            except aiohttp.ClientSSLError as error:
                raise ServerUnreachable(
                    f"{self.url} was not trusted: {error}. For a certificate of your own give its CA file "
                    "(--ca-file), or check the address."
                ) from None
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                trouble = str(error) or type(error).__name__
        raise ServerUnreachable(
            f"No answer from {self.url} ({trouble}). Is ComfyUI running there? Start it, or give its address "
            "with --server."
        )

    def _checked(self, answer: aiohttp.ClientResponse, data: bytes, path: str, allowed) -> tuple[int, bytes]:
        status = answer.status
        if status in (401, 403, 407) or 300 <= status < 400:
            raise AccessDenied(
                f"{self.url} answers HTTP {status}: the server or a proxy in front of it wants to know who asks. "
                "Give the header it expects with --header or KREA_HEADERS."
            )
        if status == 404:
            raise LookupError(path.partition("?")[0])
        if status >= 400 and status not in allowed:
            text = data[:300].decode(errors="replace").strip()
            raise ServerUnreachable(f"{self.url}{path.partition('?')[0]} answers HTTP {status}: {text}")
        return status, data


def tls_context(
    ca_file: str | None = None, certificate: str | None = None, key: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """How https is trusted.

    Args:
        ca_file: PEM file of the authorities to trust besides the system's.
        certificate, key: PEM files by which this client shows who it is.
        verify: False trusts any server; for tests in one's own network.
    """
    context = ssl.create_default_context()
    try:
        if ca_file:
            context.load_verify_locations(ca_file)
        if certificate:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"The certificate file could not be used ({ca_file or certificate}): {error}") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _without_login(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]
