"""Batches on Ray: workers with a ComfyUI given or started, one killed, and one whose machine goes."""

import asyncio
import os
import shlex
import signal
import sys
import tempfile
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dev import small_model
from dev.environment import ROOT, comfyui_root
from dev.host import CALM_THREADS, PACK_FOLDER, link
from krea_client import Request, batch
from krea_client.batch import ray_pool
from tests.server.test_client_batch import FAST, JOBS, job_file, results

MACHINE = {"num_cpus": 1, "resources": {"comfyui": 1}}  # of a node, as Ray counts
PLACE = {"resources": {"comfyui": 1}}  # what an actor that starts a ComfyUI asks for

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")


def command(base):
    """Starts a ComfyUI with the pack and the small model in a folder of its own."""
    link(ROOT, base / "custom_nodes" / PACK_FOLDER)
    for folder, file in small_model.FILES:
        link(file, base / "models" / folder / file.name)
    words = [sys.executable, "main.py", "--cpu", "--port", "{port}", "--base-directory", str(base)]
    return shlex.join([*words, "--disable-api-nodes", "--database-url", "sqlite:///:memory:"])


def processes(base):
    """The ids of the ComfyUIs that run in a folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if words[1:2] == [b"main.py"] and str(base).encode() in words:
            found.append(int(folder.name))
    return found


def run(folder, end, urls, **settings):
    """A batch on servers and on one that a worker starts; `end` is called when that has done its share."""
    path = job_file(folder, [FAST | {"id": f"job-{number}"} for number in range(JOBS)])
    events = []

    @asynccontextmanager
    async def both_ready():
        """With the picture in the cache of both, so that neither does the other's share while that paints."""
        comfyui = {"command": command(folder / "comfyui"), "folder": str(comfyui_root())}
        async with ray_pool.workers(urls, **comfyui, **settings) as workers:
            for worker in workers:
                await worker.ready()
                warm = Path(tempfile.mkdtemp(dir=folder))
                await worker.make(Request(**FAST), str(uuid.uuid4()), warm)
            yield workers

    def watch(event):
        events.append(event)
        if event.worker == "ray worker 1" and [each.worker for each in events].count("ray worker 1") == JOBS // 4:
            end()

    return asyncio.run(batch.run(path, folder / "out", both_ready(), watch)), events


def check(folder, report):
    assert (report.done, report.failed, report.left) == (JOBS, 0, 0)
    made = results(folder / "out")
    assert len(made) == len({result.job_id for result in made.values()}) == JOBS
    assert (
        all(share.jobs >= JOBS // 4 for share in report.workers) and sum(share.jobs for share in report.workers) == JOBS
    )
    ended(folder / "comfyui")


def ended(base):
    deadline = time.monotonic() + 30
    while processes(base):
        assert time.monotonic() < deadline, "a ComfyUI outlives its worker"
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    for name, value in {**CALM_THREADS, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def cluster(calm):
    """A Ray cluster of a head, on which nothing that starts a ComfyUI is placed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_killed_comfyui_is_started_again_by_its_worker(server, tmp_path):
    def end():
        (pid,) = processes(tmp_path / "comfyui")
        os.kill(pid, signal.SIGKILL)

    report, events = run(tmp_path, end, [server.url])
    check(tmp_path, report)
    assert not [event for event in events if isinstance(event, batch.WorkerNotice)]


def test_when_a_machine_goes_the_others_do_its_jobs(cluster, server, tmp_path):
    """The started ComfyUI is on a node of its own, which is taken from the cluster."""
    node = cluster.add_node(**MACHINE)

    def end():
        take(cluster, node, tmp_path / "comfyui")

    report, events = run(tmp_path, end, [server.url], address=cluster.address, options=PLACE)
    check(tmp_path, report)
    assert "ray worker 1" in lost(events)


def test_a_worker_whose_machine_goes_is_waited_for_when_it_is_the_only_one(cluster, tmp_path):
    """Ray starts it again on the machine that is left, with a ComfyUI of its own there."""
    node = cluster.add_node(**MACHINE)

    def end():
        cluster.add_node(**MACHINE)
        take(cluster, node, tmp_path / "comfyui")

    report, events = run(tmp_path, end, [], address=cluster.address, options=PLACE)
    check(tmp_path, report)
    assert "ray worker 1" in lost(events)


def take(cluster, node, base):
    """Takes a machine from the cluster; its actor is gone once the ComfyUI there is, before another job gets done."""
    cluster.remove_node(node, allow_graceful=False)
    ended(base)


def lost(events):
    return [event.worker for event in events if isinstance(event, batch.WorkerNotice) and "lost" in event.text]
