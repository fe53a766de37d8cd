"""HTTP and WebSocket to one ComfyUI, through whatever lies between: retries, errors in words, no secrets in them."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlencode, urlsplit

import aiohttp

from .errors import AccessDenied, InvalidRequest, ServerUnreachable

TRIES = 4
PAUSE = 0.25  # s before the second try, doubled each time
# A picture of 4K may take minutes on a slow line, but not without a byte for a minute.
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=10, sock_read=60)
_LATER = (429, 502, 503, 504)  # a proxy's way to say that its server is not there at this moment
_HERE = ("localhost", "127.0.0.1", "::1")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
_Value = TypeVar("_Value")


class NotFound(ServerUnreachable):
    """The server has nothing at a path."""


class Connection:
    """A session with the ComfyUI at a URL, which may have a path in front (a proxy's prefix).

    Args:
        headers: sent with every request, the WebSocket's included; never logged.
        tls: for https: a context from `tls_context`.

    Raises InvalidRequest: no address of a server, or a header that HTTP cannot carry.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None):
        parts = _parts(url)
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        headers = _checked(headers or {})
        if parts.username and "authorization" not in map(str.lower, headers):
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        # The environment names proxies for the world, which this machine is not to them.
        self._options = {"headers": headers, "trust_env": parts.hostname not in _HERE}
        self._tls = True if tls is None else tls
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def close(self) -> None:
        """Ends the session; whoever still uses the connection gets ServerUnreachable."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, **query: str) -> Any:
        """The JSON at a path. Raises ServerUnreachable, AccessDenied, NotFound."""
        return (await self._ask("GET", path + (f"?{urlencode(query)}" if query else "")))[1]

    async def file(self, path: str, **query: str) -> bytes:
        """The whole file at a path. Raises as `get`."""
        return (await self._ask("GET", f"{path}?{urlencode(query)}", read=bytes))[1]

    async def post(self, path: str, body: Any) -> None:
        """Sends JSON whose answer says nothing; again where the answer is lost. Raises as `get`."""
        await self._ask("POST", path, read=bytes, json=body)

    async def hand_over(self, body: Any) -> tuple[int, Any]:
        """Status and JSON of the answer to a job, sent once: the server may have it though the answer is lost."""
        return await self._ask("POST", "/prompt", allowed=(400,), tries=1, json=body)

    async def upload(self, name: str, data: bytes, subfolder: str) -> str:
        """Puts a picture into the server's input folder; its name there, with the subfolder."""

        def form() -> aiohttp.FormData:
            fields = aiohttp.FormData({"type": "input", "subfolder": subfolder})
            fields.add_field("image", data, filename=name)
            return fields

        _, stored = await self._ask("POST", "/upload/image", form=form)
        return "/".join(filter(None, (stored.get("subfolder"), stored["name"])))

    async def events(self, client_id: str) -> aiohttp.ClientWebSocketResponse:
        """The WebSocket on which ComfyUI tells a client of its jobs. Raises aiohttp.ClientError, TimeoutError."""
        socket = await self._session_open().ws_connect(
            f"{self.url}/ws?clientId={client_id}",
            ssl=self._tls,
            heartbeat=30,  # s; a server that loads a model may not answer at once
            max_msg_size=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=2),
        )
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        return socket

    def no_comfyui(self, answer: bytes = b"") -> ServerUnreachable:
        """The error that something answers which is no ComfyUI."""
        said = f" (it says {answer[:80].decode(errors='replace')!r})" if answer else ""
        return ServerUnreachable(f"{self.url} answers, but not as ComfyUI does{said}. Check the address.")

    def _session_open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise ServerUnreachable(f"The connection to {self.url} has been closed.")
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=REQUEST_TIMEOUT, **self._options)
        return self._session

    async def _ask(
        self, method: str, path: str, *, read=json.loads, allowed=(), form=None, tries: int = TRIES, **options: Any
    ) -> tuple[int, Any]:
        """Status and body of one whole answer; asked again while there is none that can be read."""
        trouble: ServerUnreachable | None = None
        for attempt in range(tries):
            if attempt:
                logging.getLogger(__name__).debug("%s %s: %s", method, path.partition("?")[0], trouble)
                await asyncio.sleep(PAUSE * 2 ** (attempt - 1))
            if form is not None:
                options["data"] = form()  # a form is used up by sending it
            try:
                async with self._session_open().request(
                    method, self.url + path, ssl=self._tls, allow_redirects=False, **options
                ) as answer:
                    data = await answer.read()
                if answer.status not in _LATER:
                    self._check(answer, data, path, allowed)
                    return answer.status, read(data)
                trouble = self._no_answer(f"HTTP {answer.status}")
            except aiohttp.ClientSSLError as error:
                raise ServerUnreachable(
                    f"{self.url} was not trusted: {error}. For a certificate of your own give its CA file "
                    "(--ca-file), or check the address."
                ) from None
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                trouble = self._no_answer(str(error) or type(error).__name__)
            except ValueError:  # cut off, or never JSON
                trouble = self.no_comfyui(data)
        raise trouble

    def _no_answer(self, why: str) -> ServerUnreachable:
        return ServerUnreachable(
            f"No answer from {self.url} ({why}). Is ComfyUI running there? Start it, or give its address with --server."
        )

    def _check(self, answer: aiohttp.ClientResponse, data: bytes, path: str, allowed) -> None:
        status = answer.status
        if status in (401, 403, 407):
            raise AccessDenied(
                f"{self.url} answers HTTP {status}: the server or a proxy in front of it wants to know who asks. "
                "Give the header it expects with --header or KREA_HEADERS."
            )
        if 300 <= status < 400:
            elsewhere = urlsplit(answer.headers.get("Location", ""))
            raise AccessDenied(
                f"{self.url} answers HTTP {status} and points to {elsewhere.scheme}://{elsewhere.hostname}. Give that "
                "address with --server; if it is a login page, the header that it expects with --header."
            )
        if status == 413:
            raise InvalidRequest(
                f"{self.url}{path.partition('?')[0]} answers HTTP 413: the server, or a proxy in front of it, takes no "
                "upload as large as this picture. Raise the proxy's limit (nginx: client_max_body_size) or ComfyUI's "
                "(--max-upload-size), or give a smaller picture."
            )
        if status >= 400 and status not in allowed:
            is_page = answer.content_type == "text/html"  # for browsers
            text = "a page in place of data" if is_page else data[:300].decode(errors="replace").strip()
            kind = NotFound if status == 404 else ServerUnreachable
            raise kind(f"{self.url}{path.partition('?')[0]} answers HTTP {status}: {text}")


async def patiently(ask: Callable[[], Awaitable[_Value]], patience: float) -> _Value:
    """The answer of a server that may be away for some seconds, as while it is restarted. Raises as `ask` does."""
    until = time.monotonic() + patience
    while True:
        try:
            return await ask()
        except (AccessDenied, NotFound):
            raise
        except ServerUnreachable:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(1)


def tls_context(
    ca_file: str | None = None, certificate: str | None = None, key: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """How https is trusted.

    Args:
        ca_file: PEM file of the authorities to trust besides the system's.
        certificate, key: PEM files by which this client shows who it is.
        verify: False trusts any server; for tests in one's own network.

    Raises InvalidRequest: a file that cannot be used, or a key without its certificate.
    """
    if key and not certificate:
        raise InvalidRequest(f"The key {key} has no certificate. Give the certificate that it belongs to, too.")
    context = ssl.create_default_context()
    given = ca_file
    try:
        if ca_file:
            context.load_verify_locations(ca_file)
        if certificate:
            given = " with ".join(filter(None, (certificate, key)))
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"The certificate file could not be used ({given}): {error}") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as they are sent. Raises InvalidRequest, which shows no value: it may be a secret."""
    checked = {name: value.strip() for name, value in headers.items()}
    for name, value in checked.items():
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidRequest(f"The header name {name!r} cannot be sent. Expected letters, digits and -.")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidRequest(
                f"The value of the header {name} (not shown here) cannot be sent: it has a line break or another "
                "control character in it. Expected one line of text."
            )
    return checked


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        extra = parts.query or parts.fragment
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not extra:
            return parts
    except ValueError:  # a port that is no number, half an IPv6 address
        pass
    # Without login, query and fragment; nothing where an @ or ? may belong to either.
    plain = re.fullmatch(r"(\w+://)?([^?#]*@)?([^?#@]*)([?#][^@]*)?", url, re.DOTALL)
    shown = (plain[1] or "") + plain[3] if plain else "..."
    raise InvalidRequest(
        f"The server's address is {shown!r}. Expected http://HOST:PORT or https://HOST/PATH with nothing behind it; a "
        "token goes into a header."
    )
