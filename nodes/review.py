"""Manual review over HTTP: the pictures that wait, and a person's decisions about them.

GET /flux_krea/review lists them, GET /flux_krea/review/ID/picture shows one, and POST /flux_krea/review/ID decides with
a JSON object of approved (true or false), reviewer and note.
"""

import asyncio
import json
import logging
import mimetypes
from urllib.parse import urlsplit

from aiohttp import web
from server import PromptServer

from ..krea.quarantine import Case, NotCarriedOutError, NotWaitingError
from . import desk

PATH = "/flux_krea/review"
MAX_WORDS = {"reviewer": 200, "note": 4000}  # characters
# Never kept by a browser or a proxy, never run as anything but a picture.
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
_NOT_CARRIED_OUT = "A decision is kept, but could not be carried out yet; it is tried again when ComfyUI starts."


def add_routes() -> None:
    """Serve review on this ComfyUI, and settle what was decided when it was last killed."""
    server = getattr(PromptServer, "instance", None)  # absent where the pack is loaded without a server
    if server is None:
        return
    for error in desk.quarantine().resume():
        logging.error("Krea Review: %s (%s)", _NOT_CARRIED_OUT, error, exc_info=error)
    server.routes.get(PATH)(_list)
    server.routes.get(PATH + "/{id}/picture")(_picture)
    server.routes.post(PATH + "/{id}")(_rule)


async def _list(request: web.Request) -> web.Response:
    _own_page(request)
    cases = await asyncio.to_thread(desk.quarantine().waiting)
    return web.json_response({"waiting": [_shown(case) for case in cases]}, headers=_PRIVATE)


async def _picture(request: web.Request) -> web.Response:
    _own_page(request)
    try:
        case, data = await asyncio.to_thread(desk.quarantine().picture, request.match_info["id"])
    except NotWaitingError:
        raise _not_waiting() from None
    except (OSError, ValueError) as error:
        raise _refused(web.HTTPInternalServerError, f"The picture cannot be shown: {error}") from error
    return web.Response(body=data, content_type=mimetypes.guess_type(case.file)[0], headers=_PRIVATE)


async def _rule(request: web.Request) -> web.Response:
    _own_page(request)
    approved, words = await _asked(request)
    try:
        ruling = await asyncio.to_thread(
            desk.quarantine().rule, request.match_info["id"], approved, words["reviewer"], words["note"]
        )
    except NotWaitingError:
        raise _not_waiting() from None
    except NotCarriedOutError as error:
        logging.exception("Krea Review: %s", _NOT_CARRIED_OUT)
        raise _refused(web.HTTPInternalServerError, f"{_NOT_CARRIED_OUT} ({error})") from error
    except (OSError, ValueError) as error:
        logging.exception("Krea Review: there is no decision.")
        raise _refused(web.HTTPInternalServerError, f"No decision was made: {error}") from error
    return web.json_response({"approved": ruling.approved, "released": ruling.released}, headers=_PRIVATE)


async def _asked(request: web.Request) -> tuple[bool, dict[str, str]]:
    """What a reviewer decides. Only JSON: a form of another site cannot send it."""
    if request.content_type != "application/json":
        raise _refused(web.HTTPUnsupportedMediaType, "Send the decision as application/json.")
    try:
        asked = await request.json()
    except (ValueError, LookupError, RecursionError):  # no JSON, no text, an encoding that nobody knows, too deep
        raise _refused(web.HTTPBadRequest, "The decision is no JSON.") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("approved"), bool):
        raise _refused(web.HTTPBadRequest, "Say approved: true or approved: false.")
    words = {name: asked.get(name, "") for name in MAX_WORDS}
    for name, text in words.items():
        if not isinstance(text, str) or len(text) > MAX_WORDS[name]:
            raise _refused(web.HTTPBadRequest, f"{name} must be text of at most {MAX_WORDS[name]} characters.")
    return asked["approved"], words


def _own_page(request: web.Request) -> None:
    """Refuse a page of another site, whose script or form would act in the reviewer's name."""
    origin = request.headers.get("Origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.host
    if foreign or request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        raise _refused(web.HTTPForbidden, "Review is open to ComfyUI's own page only.")


def _shown(case: Case) -> dict:
    return {"id": case.id, "held": case.held, "sha256": case.sha256, **case.facts}


def _not_waiting() -> web.HTTPException:
    return _refused(web.HTTPNotFound, "This picture does not wait for review (any more); somebody has decided.")


def _refused(kind: type[web.HTTPException], message: str) -> web.HTTPException:
    return kind(text=json.dumps({"error": message}), content_type="application/json", headers=_PRIVATE)
