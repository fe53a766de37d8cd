"""Headless use of Flux Krea: from a request to pictures on disk, over the HTTP API of a ComfyUI that has the pack.

from krea_client import KreaClient, Request

with KreaClient("http://127.0.0.1:8188") as client:
    result = client.generate(Request(prompt="Fog over a harbour at dawn."), "pictures")
    print(result.paths)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AsyncKreaClient, KreaClient
    from .errors import KreaError
    from .request import Request, StyleReference, schema
    from .result import Result

DEFAULT_URL = "http://127.0.0.1:8188"
_HOMES = {
    "AsyncKreaClient": "client",
    "KreaClient": "client",
    "KreaError": "errors",
    "Request": "request",
    "Result": "result",
    "StyleReference": "request",
    "schema": "request",
}
__all__ = ["AsyncKreaClient", "KreaClient", "KreaError", "Request", "Result", "StyleReference", "schema"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for only then, so that a command's --help does not wait for the HTTP library."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
