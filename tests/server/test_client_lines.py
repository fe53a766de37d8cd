"""The client when the line to the server fails: nothing is lost or run twice."""

import asyncio
import time
import uuid

import pytest
from aiohttp import web
from PIL import Image

from krea_client import KreaClient, errors
from krea_client.events import Notice, Progress
from tests.server.proxy import Proxy, cut, drop
from tests.server.small_jobs import pixels, runs, saved, small


def once(path, fault):
    """A rule: the first request to a path meets the fault."""
    met = []

    async def rule(request, forward):
        if not met and request.path.startswith(path):
            met.append(request.path)
            return await fault(request, forward)
        return await forward()

    rule.met = met
    return rule


async def lose(request, forward):
    """The server has the request; its answer is lost."""
    await forward()
    return await drop(request)


async def refuse(request, forward):
    return await drop(request)


async def cut_short(request, forward):
    return await cut(request, await forward())


async def cut_unnoticed(request, forward):
    return await cut(request, await forward(), declared=False)


async def busy(request, forward):
    return web.Response(status=502, text="<html>Bad gateway</html>")


ANSWERS = [
    ("/prompt", refuse),
    ("/prompt", lose),
    ("/prompt", cut_short),
    ("/prompt", cut_unnoticed),
    ("/prompt", busy),
    ("/system_stats", cut_short),
    ("/object_info", cut_unnoticed),
    ("/upload", lose),
    ("/view", refuse),
    ("/view", cut_short),
    ("/view", cut_unnoticed),
    ("/view", busy),
]
# Without the filter no SHA-256 comes with a picture.
CASES = [(*answer, "judge") for answer in ANSWERS] + [(*answer, "off") for answer in ANSWERS if answer[0] == "/view"]


@pytest.mark.parametrize("path, fault, content_filter", CASES)
def test_one_lost_answer_changes_nothing(server, tmp_path, hurry, path, fault, content_filter):
    reference = tmp_path / "reference.png"
    Image.linear_gradient("L").save(reference)
    job_id, disclosure = str(uuid.uuid4()), "none" if content_filter == "off" else "made by AI"
    references = [str(reference)] if path == "/upload" else []
    request = small(content_filter=content_filter, disclosure=disclosure, style_references=references)
    rule = once(path, fault)
    before = runs(server)
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        result = client.generate(request, tmp_path / "out", job_id=job_id)
    assert rule.met and len(result.paths) == 1 and pixels(result.paths[0]).shape == (256, 256, 3)
    assert runs(server) == before + 1 and len(saved(server, job_id)) == 1


def test_a_picture_that_always_arrives_otherwise_is_not_taken(server, tmp_path, hurry):
    async def rule(request, forward):
        return await (cut_unnoticed(request, forward) if request.path == "/view" else forward())

    job_id = str(uuid.uuid4())
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.ServerUnreachable, match="arrives with other bytes"):
            client.generate(small(), tmp_path, job_id=job_id)
    assert list(tmp_path.iterdir()) == []
    with KreaClient(server.url) as client:
        assert client.generate(small(), tmp_path, job_id=job_id).paths
    assert len(saved(server, job_id)) == 1


async def no_socket(request, forward):
    return web.Response(status=403)


async def socket_dies(request, forward):
    asyncio.get_running_loop().call_later(1, request.transport.abort)
    return await forward()


async def socket_ends_in_a_frame(request, forward):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    request.transport.write(b'\x81\x7e\x10\x00{"type": "progr')  # text of 4096 bytes
    request.transport.abort()
    return socket


async def silent_socket(request, forward):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for _ in socket:
        pass
    return socket


async def foreign_socket(request, forward):
    """What no ComfyUI sends, but a custom node may."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    for text in ("hello", "no JSON", "[1]", '{"type": "a"}', '{"data": {}}', '{"type": "a", "data": null}'):
        await socket.send_str(text)
    await socket.send_str('{"type": "a", "data": [1]}')
    for header in (b"no JSON", b"[1]"):
        await socket.send_bytes(bytes([0, 0, 0, 4, 0, 0, 0, len(header)]) + header)
    async for _ in socket:
        pass
    return socket


FAULTS = [no_socket, socket_dies, socket_ends_in_a_frame, silent_socket, foreign_socket]


@pytest.mark.parametrize("fault", FAULTS)
def test_without_a_websocket_the_result_is_asked_for(server, tmp_path, hurry, fault):
    async def rule(request, forward):
        return await (fault(request, forward) if request.path == "/ws" else forward())

    job_id = str(uuid.uuid4())
    seed = 200 + FAULTS.index(fault)
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        *events, last = client.events(small(seed=seed, num_images=2), tmp_path, job_id=job_id, previews=True)
    assert len(last.result.paths) == 2 and len(saved(server, job_id)) == 2
    assert proxy.paths.count("/prompt") == 1
    if fault is no_socket:
        assert any(isinstance(event, Notice) and "from time to time" in event.text for event in events)


def test_a_slow_line_behind_a_prefix_is_only_slow(server, tmp_path):
    async def rule(request, forward):
        await asyncio.sleep(0.3)
        return await forward()

    with Proxy(server.url, rule, prefix="/gpu/comfy") as proxy, KreaClient(proxy.url + "/") as client:
        events = list(client.events(small(seed=210), tmp_path))
    assert events[-1].result.server.url == proxy.url
    assert not any(isinstance(event, Notice) for event in events)
    assert [event.step for event in events if isinstance(event, Progress)][-1] == 15, "ComfyUI leaves out quick steps"


def test_a_server_that_is_away_for_some_seconds_is_waited_for(server, tmp_path):
    away_until = []

    async def rule(request, forward):
        if request.path == "/prompt" and not away_until:
            away_until.append(time.monotonic() + 4)
        if away_until and time.monotonic() < away_until[0]:
            return web.Response(status=502)
        return await forward()

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        *events, last = client.events(small(), tmp_path)
    assert last.result.paths and any("HTTP 502" in event.text for event in events if isinstance(event, Notice))


def test_patience_ends_with_what_the_server_said(server, tmp_path, hurry):
    async def rule(request, forward):
        return web.Response(status=500, text="no room") if request.path == "/prompt" else await forward()

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url, patience=1) as client:
        with pytest.raises(errors.ServerUnreachable, match="/prompt answers HTTP 500: no room"):
            client.generate(small(), tmp_path)
