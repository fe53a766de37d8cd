"""Which version of the pack this ComfyUI has, for clients: GET /flux_krea."""

from aiohttp import web
from server import PromptServer

from ..krea import VERSION

PATH = "/flux_krea"


def add_routes() -> None:
    """Serve the version on this ComfyUI."""
    server = getattr(PromptServer, "instance", None)  # absent where the pack is loaded without a server
    if server is not None:
        server.routes.get(PATH)(_about)


async def _about(request: web.Request) -> web.Response:
    return web.json_response({"name": "flux-krea", "version": VERSION})
