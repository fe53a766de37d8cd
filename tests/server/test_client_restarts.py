"""The client and a ComfyUI that is killed, lacks files or runs out of memory: nothing is lost or run twice."""

import asyncio
import threading
import time
import uuid

import pytest
from aiohttp import web
from PIL import Image

from dev import small_model
from dev.host import ComfyHost, link
from krea.model_file.catalogue import FILES, SMALL_MODEL
from krea_client import AsyncKreaClient, KreaClient, errors
from krea_client.events import Progress
from tests.server.proxy import Proxy, changing, drop
from tests.server.small_jobs import runs, saved, small

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


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    machine = Machine(tmp_path_factory.mktemp("faults"))
    yield machine
    machine.host.stop()


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
    assert runs(machine.host) == 3, "what was done is not run again, what was not is run once"


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
    assert len(result.paths) == 4 and runs(machine.host) == 1
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
