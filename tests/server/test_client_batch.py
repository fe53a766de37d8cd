"""Batches on real servers: killed servers, killed and interrupted clients; every result is there, and none twice."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dev import small_model
from dev.environment import ROOT
from dev.host import ComfyHost
from krea_client import batch
from krea_client.delivery import read
from krea_client.errors import CannotSave, InvalidRequest
from tests.server.proxy import Proxy

JOBS = int(os.environ.get("KREA_TEST_JOBS", 12))  # by hand: 200
# One prompt and seed: each server paints it once and then has it in its cache; each job is still judged and saved.
FAST = {
    "prompt": "a red circle on a blue background",
    "aspect_ratio": "1:1",
    "megapixels": 0.0625,
    "num_inference_steps": 15,
    "texture_enhancement": False,
    "seed": 5,
}


def job_file(folder, jobs):
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(json.dumps(job) for job in jobs))
    return path


def run(path, out, *urls, on_event=lambda event: None):
    return asyncio.run(batch.run(path, out, batch.servers(urls, patience=1), on_event))


def results(out):
    """By job; every folder holds one result and the pictures that it names, with their hashes."""
    found = {}
    for folder in out.iterdir():
        if folder.is_dir() and folder.name != ".batch":
            (file,) = folder.glob("*.json")
            found[folder.name] = read(file)
            assert {str(path) for path in folder.iterdir()} == {str(file), *found[folder.name].paths}
    return found


def saved(host):
    """How many files each job has on a server."""
    return Counter(path.name.partition("_")[0] for path in (host.output_dir / "flux_krea").iterdir())


@pytest.fixture(scope="module")
def done(server, tmp_path_factory):
    """A batch over two servers, of which the second is killed half way, with its events."""
    folder, events = tmp_path_factory.mktemp("batch"), []
    path = job_file(folder, [FAST | {"id": f"job-{number}"} for number in range(JOBS)])
    with ComfyHost(folder / "spare", small_model.FILES) as spare:

        def kill(event):
            events.append(event)
            if event.worker == spare.url and [each.worker for each in events].count(spare.url) == JOBS // 4:
                spare.process.send_signal(signal.SIGKILL)

        for host in (server, spare):  # so that neither does the other's share while that paints
            run(job_file(tmp_path_factory.mktemp("warm"), [FAST]), tmp_path_factory.mktemp("warm"), host.url)
        report = run(path, folder / "out", server.url, spare.url, on_event=kill)
        assert spare.process.wait(10) == -signal.SIGKILL
        return folder, report, spare, events


def test_of_two_servers_one_may_be_killed_and_every_result_is_there_once(server, done):
    folder, report, spare, events = done
    assert (report.done, report.failed, report.left) == (JOBS, 0, 0)
    made = results(folder / "out")
    assert len(made) == JOBS and len({result.job_id for result in made.values()}) == JOBS
    assert {share.worker: share.jobs for share in report.workers} == Counter(r.server.url for r in made.values())
    assert {result.server.url for result in made.values()} == {server.url, spare.url}
    for host in (server, spare):
        counts = saved(host)
        assert all(counts[r.job_id] == 1 for r in made.values() if r.server.url == host.url)
    assert sorted(event.finished for event in events if isinstance(event, batch.JobOver)) == list(range(1, JOBS + 1))
    assert [event.worker for event in events if isinstance(event, batch.WorkerNotice)] == [spare.url]


def test_results_are_the_same_bytes_whichever_server_made_them(server, done):
    folder, _, spare, _ = done
    (folder / "again" / ".batch").mkdir(parents=True)
    shutil.copy(folder / "out" / ".batch" / "token", folder / "again" / ".batch")
    run(folder / "jobs.jsonl", folder / "again", server.url)
    first, second = results(folder / "out"), results(folder / "again")
    other = [name for name in first if first[name].server.url == spare.url]
    assert other and all(second[name].server.url == server.url for name in other)
    assert [first[name].pictures[0].sha256 for name in other] == [second[name].pictures[0].sha256 for name in other]
    assert all(np.asarray(Image.open(first[name].paths[0])).std() > 10 for name in other)


def test_a_refused_prompt_is_finished_and_a_missing_picture_a_failure(server, tmp_path):
    jobs = [
        FAST | {"id": "blocked", "prompt": "hardcore porn"},
        FAST | {"id": "styled", "style_references": ["reference.png"]},
        FAST | {"id": "good"},
    ]
    path = job_file(tmp_path, jobs)
    report = run(path, tmp_path / "out", server.url)
    assert (report.done, report.blocked, report.failed) == (1, 1, 1)
    assert report.failures[0].job == "styled" and report.exit_code == InvalidRequest.exit_code
    made = results(tmp_path / "out")
    assert made["blocked"].prompt_verdict.decision == "block" and made["blocked"].paths == []
    report = run(path, tmp_path / "out", server.url)
    assert (report.skipped, report.failed) == (2, 1)


def test_with_a_time_limit_no_job_waits_behind_another_of_the_batch(server, tmp_path):
    ahead = []

    async def rule(request, forward):
        if request.path == "/prompt":
            queue = await asyncio.to_thread(server.get, "/queue")
            ahead.append(len(queue["queue_running"] + queue["queue_pending"]))
        return await forward()

    with Proxy(server.url, rule) as proxy:
        workers = batch.servers([proxy.url], time_limit=60)
        path = job_file(tmp_path, [FAST | {"seed": seed} for seed in (300, 301, 302)])
        assert asyncio.run(batch.run(path, tmp_path / "out", workers)).done == 3
    assert ahead == [0, 0, 0]


FULL = """
import asyncio, resource, sys
from krea_client import batch
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
report = asyncio.run(batch.run(sys.argv[1], sys.argv[2], batch.servers([sys.argv[3]])))
print(report)
sys.exit(report.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of a file's size")
def test_a_full_disk_at_the_only_job_is_told_and_the_next_run_fetches_the_picture(server, tmp_path):
    path, out = job_file(tmp_path, [FAST | {"id": "one"}]), tmp_path / "out"
    command = [sys.executable, "-c", FULL, path, out, server.url]
    full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert full.returncode == CannotSave.exit_code, full.stderr
    assert "Stopped early: " in full.stdout and "run a batch again as it was" in full.stdout
    assert run(path, out, server.url).done == 1
    assert saved(server)[results(out)["one"].job_id] == 1


CLIENT = """
import asyncio, sys
from krea_client import batch
asyncio.run(batch.run(sys.argv[1], sys.argv[2], batch.servers([sys.argv[3]])))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_an_ended_client_goes_on_where_it_was(server, tmp_path, how):
    """Killed, it finds its jobs on the server; interrupted, it has cancelled them there and asks anew."""
    slow = FAST | {"seed": 100 + how, "num_inference_steps": 30}
    path, out = job_file(tmp_path, [FAST, slow, slow]), tmp_path / "out"
    command = [sys.executable, "-c", CLIENT, path, out, server.url]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as client:
        while len(list(out.glob("line_*"))) < 1 or len(waiting := server.get("/queue")["queue_running"]) < 1:
            time.sleep(0.01)
        time.sleep(0.5)  # ComfyUI forgets an interruption that comes before the first node
        client.send_signal(how)
        client.communicate(timeout=60)
    (running,) = [item[1] for item in waiting]
    if how == signal.SIGINT:
        while server.get("/queue")["queue_running"]:
            time.sleep(0.1)
        assert server.history(running)["status"]["status_str"] == "error"
    report = run(path, out, server.url)
    assert (report.done, report.skipped) == (2, 1)
    made = results(out)
    assert {saved(server)[result.job_id] for result in made.values()} == {1}
    assert (running in {result.job_id for result in made.values()}) == (how == signal.SIGKILL)
