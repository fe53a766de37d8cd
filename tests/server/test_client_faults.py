"""The client when a server, a line or a disk fails: nothing is lost or run twice, and the error says what to do.

Faults are made on real processes: a ComfyUI that is killed, and a proxy that spoils what passes between.
"""

import asyncio
import datetime
import ipaddress
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import threading
import time
import uuid

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from dev import small_model
from dev.host import ComfyHost, link
from krea.model_file.catalogue import FILES, SMALL_MODEL
from krea_client import AsyncKreaClient, KreaClient, Request, connection, errors, job
from krea_client.connection import tls_context
from krea_client.events import Notice, Progress
from tests.server.proxy import Proxy, cut, drop

SMALL = {"aspect_ratio": "1:1", "megapixels": 0.0625, "num_inference_steps": 15, "texture_enhancement": False}
PATIENCE = 240.0  # s for a restart on a busy machine
# Out of memory cannot be had on purpose: this node says it as torch does, and ComfyUI makes of it what it makes of it.
NODE = """
import torch
class OutOfMemory:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"samples": ("LATENT",), "vae": ("VAE",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "test"
    def run(self, samples, vae):
        raise torch.OutOfMemoryError("Allocation on device")
NODE_CLASS_MAPPINGS = {"TestOutOfMemory": OutOfMemory}
"""


def small(**values):
    return Request(**SMALL | {"prompt": "a red circle on a blue background", "seed": 5} | values)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def saved(host, job_id):
    return list((host.output_dir / "flux_krea").glob(f"{job_id}*"))


class Machine:
    """A ComfyUI that can be killed and started again under its address."""

    def __init__(self, base):
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / "out_of_memory.py").write_text(NODE)
        self.base, self.port = base, 0
        self.start()

    def start(self):
        self.host = ComfyHost(self.base, small_model.FILES, port=self.port).__enter__()
        self.port = self.host.port

    def kill(self):
        self.host.process.kill()
        self.host.stop()

    def runs(self):
        """How many jobs this process has taken."""
        return self.host.log_text().count("got prompt")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    machine = Machine(tmp_path_factory.mktemp("faults"))
    yield machine
    machine.host.stop()


@pytest.fixture
def hurry(monkeypatch):
    """No waiting between tries."""
    monkeypatch.setattr(connection, "PAUSE", 0.01)
    monkeypatch.setattr(job, "SILENCE", 1.0)


# A server that is killed


def test_four_jobs_outlive_a_kill_at_four_points(machine, tmp_path):
    done, running, queued, handed_over = ids = [str(uuid.uuid4()) for _ in range(4)]
    asked, restarted = threading.Event(), threading.Event()

    async def rule(request, forward):
        if request.path == "/view" and done in request.query_string:
            asked.set()
            while not restarted.is_set():
                await asyncio.sleep(0.05)
        answer = await forward()
        if request.path == "/prompt" and handed_over in await request.text() and not restarted.is_set():
            while not restarted.is_set():  # the server has the job, its answer is on the way
                await asyncio.sleep(0.05)
            return await drop(request)
        return answer

    async def until(condition):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)

    def waits(job_id):
        return any(item[1] == job_id for item in machine.host.get("/queue")["queue_pending"])

    async def main(url):
        async with AsyncKreaClient(url, patience=PATIENCE) as client:
            sampled = asyncio.Event()

            async def watched():
                async for event in client.events(requests[running], tmp_path, job_id=running):
                    if isinstance(event, Progress):
                        sampled.set()
                return event.result

            requests = {job_id: small(seed=number * 10) for number, job_id in enumerate(ids)}
            requests[running] = requests[running].changed(num_images=4)
            jobs = [asyncio.create_task(client.generate(requests[done], tmp_path, job_id=done))]
            await until(asked.is_set)
            jobs.append(asyncio.create_task(watched()))
            await sampled.wait()
            for job_id in (queued, handed_over):
                jobs.append(asyncio.create_task(client.generate(requests[job_id], tmp_path, job_id=job_id)))
                await until(lambda job_id=job_id: waits(job_id))
            assert len(saved(machine.host, done)) == 1 and not saved(machine.host, running)
            await asyncio.to_thread(machine.kill)
            await asyncio.to_thread(machine.start)
            restarted.set()
            return await asyncio.gather(*jobs)

    with Proxy(machine.host.url, rule) as proxy:
        results = asyncio.run(main(proxy.url))
    assert [result.job_id for result in results] == ids
    assert [len(result.paths) for result in results] == [1, 4, 1, 1]
    assert [len(saved(machine.host, job_id)) for job_id in ids] == [1, 4, 1, 1], "each picture was made once"
    assert machine.runs() == 3, "what was done is not run again, what was not is run once"


def test_a_job_outlives_a_kill_while_its_pictures_are_saved(machine, tmp_path):
    job_id, killed = str(uuid.uuid4()), []

    def kill_at_the_first_file():
        while not saved(machine.host, job_id):
            time.sleep(0.001)
        machine.host.process.kill()
        killed.extend(saved(machine.host, job_id))
        machine.kill()
        machine.start()

    thread = threading.Thread(target=kill_at_the_first_file)
    thread.start()
    with KreaClient(machine.host.url, patience=PATIENCE) as client:
        result = client.generate(small(seed=60, num_images=4, output_format="webp"), tmp_path, job_id=job_id)
    thread.join()
    assert len(result.paths) == 4 and machine.runs() == 1
    files = saved(machine.host, job_id)
    assert 1 <= len(killed) and len(files) == len(killed) + 4, "nothing is written over"
    assert all(Image.open(file).load() is not None for file in files), "and nothing is half written"


def test_a_job_that_takes_the_server_down_twice_is_given_up(server, tmp_path, hurry):
    async def rule(request, forward):  # as a server that is restarted after each hand-over
        if request.path == "/queue" and request.method == "GET":
            return web.json_response({"queue_running": [], "queue_pending": []})
        if request.path.startswith("/history/"):
            return web.json_response({})
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await asyncio.sleep(0.3)
            await socket.close()
            return socket
        return await forward()

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.JobFailed, match="has lost the job 2 times"):
            client.generate(small(), tmp_path)
    assert [path for path in proxy.paths if path == "/prompt"] == ["/prompt"] * 2


# A line that fails


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
    before = server.log_text().count("got prompt")
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        result = client.generate(request, tmp_path / "out", job_id=job_id)
    assert rule.met and len(result.paths) == 1 and pixels(result.paths[0]).shape == (256, 256, 3)
    assert server.log_text().count("got prompt") == before + 1 and len(saved(server, job_id)) == 1


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


@pytest.mark.parametrize("fault", [no_socket, socket_dies, socket_ends_in_a_frame, silent_socket])
def test_without_a_websocket_the_result_is_asked_for(server, tmp_path, hurry, fault):
    async def rule(request, forward):
        return await (fault(request, forward) if request.path == "/ws" else forward())

    job_id = str(uuid.uuid4())
    seed = 200 + [no_socket, socket_dies, socket_ends_in_a_frame, silent_socket].index(fault)
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        *events, last = client.events(small(seed=seed, num_images=2), tmp_path, job_id=job_id)
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
    assert sum(isinstance(event, Progress) for event in events) == 15 and not any(
        isinstance(event, Notice) for event in events
    )


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


# Who may ask


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority of one's own: its file, and the context of a server that it vouches for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, key, now = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a studio's own")])
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(certificate.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return folder / "ca.pem", context


def test_a_private_authority_is_trusted_when_it_is_named(server, tmp_path, authority):
    ca_file, context = authority
    with Proxy(server.url, tls=context) as proxy:
        with (
            KreaClient(proxy.url) as client,
            pytest.raises(errors.ServerUnreachable, match="was not trusted.*--ca-file"),
        ):
            client.server()
        for tls in (tls_context(ca_file=str(ca_file)), tls_context(verify=False)):
            with KreaClient(proxy.url, tls=tls) as client:
                *events, last = client.events(small(), tmp_path)
                assert last.result.paths and not any(isinstance(event, Notice) for event in events)


@pytest.mark.parametrize("given", ["a header", "a login in the address"])
def test_a_proxy_that_wants_to_know_who_asks_is_told_and_nobody_else(server, tmp_path, caplog, hurry, given):
    expected = "Bearer s3cret" if given == "a header" else "Basic bWU6czNjcmV0L2tleQ=="  # me:s3cret/key
    faults = iter([drop] * 2)

    async def rule(request, forward):
        if request.headers.get("Authorization") != expected:
            return web.Response(status=401, text="who are you")
        if request.path in ("/queue", "/view") and (fault := next(faults, None)):
            return await fault(request)  # so that there is something to log
        return await forward()

    caplog.set_level(logging.DEBUG)
    told = []
    with Proxy(server.url, rule) as proxy:
        url, headers = proxy.url, {"Authorization": "Bearer s3cret\n"}
        if given != "a header":
            url, headers = proxy.url.replace("//", "//me:s3cret%2Fkey@"), {}
        with KreaClient(url, headers=headers) as client:
            told += [*client.events(small(), tmp_path, job_id=str(uuid.uuid4())), client.url, client.server()]
        with KreaClient(proxy.url, headers={"Authorization": "Bearer wr0ng"}) as client:
            with pytest.raises(errors.AccessDenied, match="HTTP 401.*--header") as denied:
                client.generate(small(), tmp_path)
        told.append(denied.value)
    with KreaClient(url, headers=headers) as client, pytest.raises(errors.ServerUnreachable) as gone:
        client.server()
    told += [gone.value, *(file.read_bytes() for file in tmp_path.glob("*.json"))]
    assert "No answer" in caplog.text
    for secret in ("s3cret", "wr0ng", "bWU6", "me:"):
        assert secret not in caplog.text and not any(secret in f"{each} {each!r}" for each in told)


def test_a_login_that_ends_in_the_middle_is_told_at_once(server, tmp_path):
    async def rule(request, forward):
        return web.Response(status=403) if request.path == "/prompt" else await forward()

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client, pytest.raises(errors.AccessDenied):
        client.generate(small(), tmp_path)


def test_an_address_that_moved_is_told(server):
    async def rule(request, forward):
        raise web.HTTPMovedPermanently("https://new.example/login?key=s3cret")

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.AccessDenied, match=r"points to https://new.example\. ") as caught:
            client.server()
    assert "s3cret" not in str(caught.value)


# Who answers


def test_no_server_is_told_in_words(tmp_path, hurry):
    with KreaClient("http://127.0.0.1:9") as client, pytest.raises(errors.ServerUnreachable) as caught:
        client.generate(small(), tmp_path)
    assert "No answer from http://127.0.0.1:9" in str(caught.value) and "Is ComfyUI running" in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "<html>hello</html>"},
        {"text": "not here", "status": 404},
        {"text": "{}"},
        {"text": "[1]"},
        {"text": ""},
    ],
    ids=str,
)
def test_something_else_at_the_address_is_told(server, tmp_path, hurry, answer):
    async def rule(request, forward):
        return web.Response(**answer)

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.ServerUnreachable, match="not as ComfyUI does"):
            client.generate(small(), tmp_path)


def test_a_comfyui_without_the_pack_is_told(tmp_path):
    with ComfyHost(tmp_path / "bare", arguments=["--disable-all-custom-nodes"]) as bare:
        with KreaClient(bare.url) as client:
            assert client.server().pack is None
            with pytest.raises(errors.PackMissing, match="has no Flux Krea nodes. Install it: git clone"):
                client.generate(small(), tmp_path)


@pytest.mark.parametrize("older", ["no route", "no node", "no input"])
def test_an_older_pack_is_told(server, tmp_path, older):
    async def rule(request, forward):
        answer = await forward()
        if older == "no route" and request.path == "/flux_krea":
            return web.Response(status=404)
        if older == "no node" and request.path == "/object_info/FluxKreaSaveImage":
            return web.json_response({})
        if older == "no input" and request.path == "/object_info/FluxKreaSampler":
            info = json.loads(answer.body)
            del info["FluxKreaSampler"]["input"]["optional"]["true_cfg"]
            return web.json_response(info)
        return answer

    lacks = {"no route": "older", "no node": "lacks FluxKreaSaveImage,", "no input": "lacks FluxKreaSampler.true_cfg,"}
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.PackMissing, match=lacks[older] + ".*Update it: git pull"):
            client.generate(small(), tmp_path)


def test_all_missing_model_files_are_told_and_found_once_they_are_there(machine, tmp_path):
    reference = tmp_path / "reference.png"
    Image.linear_gradient("L").save(reference)
    request = small(style_references=[str(reference)])
    with KreaClient(machine.host.url) as client:
        try:
            for folder, file in small_model.FILES:
                (machine.host.models_dir / folder / file.name).unlink()
            with pytest.raises(errors.ModelsMissing) as caught:
                client.generate(request, tmp_path)
        finally:
            for folder, file in small_model.FILES:
                link(file, machine.host.models_dir / folder / file.name)
        for slot in SMALL_MODEL:
            assert FILES[slot][0].url in str(caught.value)
        assert client.generate(request, tmp_path).paths


# What ComfyUI refuses, and what fails while it runs


def changing(change):
    """A rule: the graph is changed on its way."""

    async def rule(request, forward):
        if request.path != "/prompt":
            return await forward()
        body = await request.json()
        change(body["prompt"])
        return await forward(json.dumps(body).encode())

    return rule


def test_errors_inside_a_good_answer_are_told_and_nothing_runs(server, tmp_path):
    answers = []

    async def rule(request, forward):
        answer = await changing(lambda graph: graph["sampler"]["inputs"].update(steps=10**6))(request, forward)
        if request.path == "/prompt":
            answers.append((answer.status, json.loads(answer.body)))
        return answer

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(
            errors.GraphRefused, match=r"FluxKreaSampler \(node sampler\): Value 1000000 bigger than max"
        ):
            client.generate(small(), tmp_path)
    [(status, answer)] = answers
    assert status == 200 and answer["node_errors"], "the prompt's filter is an output of its own"


def test_a_graph_that_is_refused_whole_is_told(server, tmp_path):
    rule = changing(lambda graph: graph["decode"].update(class_type="Nowhere"))
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.GraphRefused, match="Nowhere"):
            client.generate(small(), tmp_path)


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"class_type": "TestOutOfMemory"}, errors.OutOfMemory, "smaller resolution or fewer pictures"),
        ({"class_type": "VAEDecode", "inputs": {"samples": ["latent", 0], "vae": ["style", 0]}}, errors.JobFailed, ""),
    ],
    ids=["out of memory", "an error"],
)
def test_a_node_that_fails_is_named(machine, tmp_path, change, kind, message):
    def spoil(graph):
        graph["decode"].update(change)
        if "inputs" in change:  # a picture that is no picture: the node raises while it runs
            graph["style"] = {"class_type": "VAELoader", "inputs": {"vae_name": "spoilt.safetensors"}}

    (machine.host.models_dir / "vae" / "spoilt.safetensors").write_bytes(b"no weights")
    try:
        with Proxy(machine.host.url, changing(spoil)) as proxy, KreaClient(proxy.url) as client:
            with pytest.raises(kind, match=rf"\(node \w+\): .*{message}") as caught:
                client.generate(small(), tmp_path)
    finally:
        (machine.host.models_dir / "vae" / "spoilt.safetensors").unlink()
    assert type(caught.value) is kind


# A disk that is full

FULL = """
import resource, sys
from krea_client import KreaClient, Request
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
url, folder, request = sys.argv[1:]
try:
    KreaClient(url).generate(Request.model_validate_json(request), folder)
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of a file's size")
def test_a_full_disk_loses_nothing(server, root, tmp_path):
    request = small(seed=None, num_images=2)
    run = subprocess.run(
        [sys.executable, "-c", FULL, server.url, str(tmp_path), request.model_dump_json()],
        cwd=root,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert run.returncode == errors.CannotSave.exit_code, run.stderr
    [job_id] = re.findall(r"^CannotSave .* --job-id (\S+);", run.stdout)
    assert list(tmp_path.iterdir()) == [], "no half picture"
    before = server.log_text().count("got prompt")
    with KreaClient(server.url) as client:
        result = client.generate(request, tmp_path, job_id=job_id)
    assert len(result.paths) == 2 and server.log_text().count("got prompt") == before


def test_a_folder_that_cannot_be_made_is_told_before_the_job_costs_anything(server, tmp_path):
    (tmp_path / "file").write_text("here")
    before = server.log_text().count("got prompt")
    with KreaClient(server.url) as client, pytest.raises(errors.CannotSave, match="cannot be made"):
        client.generate(small(), tmp_path / "file")
    assert server.log_text().count("got prompt") == before
