"""Batches without a server: the job file, what the folder keeps, and which worker gets which job."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import asynccontextmanager
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from dev.environment import ROOT
from krea_client import Request, batch
from krea_client.batch import dispatch, ray_pool
from krea_client.batch.comfy_process import ComfyProcess
from krea_client.batch.jobs import read
from krea_client.batch.worker import next_id
from krea_client.errors import (
    CannotSave,
    GraphRefused,
    InvalidRequest,
    JobFailed,
    ModelsMissing,
    OutOfMemory,
    ServerUnreachable,
)
from krea_client.result import Picture, Result, Server, Timings

FOG = {"prompt": "Fog at dawn."}


def job_file(tmp_path, *lines):
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


class Painter:
    """A worker that writes a file and a result at once, or does what `does` says instead."""

    lanes = 2

    def __init__(self, name="a", does=lambda request: None, there=True):
        self.name, self.does, self.there = name, does, there
        self.made = []

    async def ready(self):
        if not self.there:
            raise ServerUnreachable(f"No answer from {self.name}.")

    async def make(self, request, job_id, folder):
        self.made.append((request.prompt, job_id))
        if error := self.does(request):
            raise error
        await asyncio.sleep(0)
        path = folder / f"krea_{request.seed}.png"
        path.write_bytes(b"picture of " + request.prompt.encode())
        result = Result(
            status="blocked" if request.prompt == "blocked" else "done",
            job_id=job_id,
            pictures=[Picture(path=None if request.prompt == "blocked" else str(path), seed=request.seed)],
            request=request.values(),
            settings={},
            models={},
            timings=Timings(queued=0, ran=0, total=0),
            server=Server(url=self.name, comfyui="", pack="", device=""),
        )
        path.with_suffix(".json").write_text(result.model_dump_json())
        return result


def run(jobs, out, *painters, on_event=lambda event: None):
    @asynccontextmanager
    async def workers():
        yield painters

    return asyncio.run(batch.run(jobs, out, workers(), on_event))


def counts(report):
    return report.done, report.blocked, report.failed, report.skipped, report.left


def prompts(painter):
    return [prompt for prompt, _ in painter.made]


def test_every_wrong_line_is_named_and_nothing_runs(tmp_path):
    path = job_file(
        tmp_path,
        FOG,
        "{",
        '"words"',
        FOG | {"guidance": 3},
        FOG | {"guidance_scale": 30, "num_images": 9},
        FOG | {"id": "../up"},
        FOG | {"id": "CON"},
        FOG | {"id": 7},
        FOG | {"id": "Cat"},
        FOG | {"id": "cat"},
    )
    painter = Painter()
    with pytest.raises(InvalidRequest) as error:
        run(path, tmp_path / "out", painter)
    lines = str(error.value).splitlines()[1:]
    assert [line.partition(": ")[0] for line in lines] == [f"line {n}" for n in (2, 3, 4, 5, 5, 6, 7, 8, 10)]
    assert "guidance_scale" in lines[3] and "num_images" in lines[4] and "names line 9" in lines[8]
    assert painter.made == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "\n \n", None])
def test_a_file_without_jobs_is_refused(tmp_path, text):
    path = tmp_path / "jobs.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidRequest, match="jobs.jsonl"):
        read(path)


def test_lines_are_named_by_their_id_or_number_and_may_be_blank(tmp_path):
    jobs = read(job_file(tmp_path, "", FOG, "  ", FOG | {"id": "fog-2"}))
    assert [(job.line, job.name) for job in jobs] == [(2, "line_00002"), (4, "fog-2")]


def test_pictures_are_found_from_the_folder_of_the_job_file(tmp_path):
    values = FOG | {"style_references": ["a.png@0.5", "https://example.com/b.png"], "image_prompt": "sub/c.png"}
    (job,) = read(job_file(tmp_path, values))
    assert job.request.images == [str(tmp_path / "a.png"), "https://example.com/b.png", str(tmp_path / "sub/c.png")]
    assert job.request.weights[0] == 0.5


def test_a_finished_job_is_never_run_again(tmp_path):
    path, out = job_file(tmp_path, FOG, {"prompt": "blocked", "id": "two"}), tmp_path / "out"
    first = Painter()
    assert counts(run(path, out, first)) == (1, 1, 0, 0, 0)
    path = job_file(tmp_path, FOG, {"prompt": "blocked", "id": "two"}, {"prompt": "new"})
    second = Painter()
    assert counts(run(path, out, second)) == (1, 0, 0, 2, 0)
    assert prompts(second) == ["new"]
    report = batch.Report.model_validate_json((out / "report.json").read_text())
    assert counts(report) == (1, 0, 0, 2, 0) and report.exit_code == 0


def test_a_result_names_its_files_where_they_are(tmp_path):
    run(job_file(tmp_path, FOG | {"id": "fog", "seed": 5}), tmp_path / "out", Painter())
    (result,) = (tmp_path / "out" / "fog").glob("*.json")
    result = Result.model_validate_json(result.read_text())
    assert result.paths == [str(tmp_path / "out" / "fog" / "krea_5.png")]
    assert (tmp_path / "out" / "fog" / "krea_5.png").read_bytes() == b"picture of Fog at dawn."
    assert result.request == FOG | {"seed": 5}
    left = [path for path in (tmp_path / "out" / ".batch").rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == ["lock", "token"]


def test_a_changed_line_is_an_error_that_names_it(tmp_path):
    out, painter = tmp_path / "out", Painter()
    run(job_file(tmp_path, FOG, FOG | {"id": "two"}), out, Painter())
    path = job_file(tmp_path, FOG, FOG | {"id": "two", "guidance_scale": 6}, {"prompt": "new"})
    with pytest.raises(InvalidRequest, match=r"line 2: .*two was made with another guidance_scale"):
        run(path, out, painter)
    assert painter.made == []


def test_a_folder_that_is_no_result_is_left_alone(tmp_path):
    (tmp_path / "out" / "fog").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match=r"line 1: .*fog is no result of a batch"):
        run(job_file(tmp_path, FOG | {"id": "fog"}), tmp_path / "out", Painter())


def test_a_seed_that_nobody_named_is_the_same_in_every_run_and_another_for_each_job(tmp_path):
    path, seeds = job_file(tmp_path, FOG, FOG), []
    for _ in range(2):
        run(path, tmp_path / "out", Painter(does=lambda request: seeds.append(request.seed) or JobFailed("no")))
    assert len(seeds) == 4 and len(set(seeds)) == 2 and set(seeds[:2]) == set(seeds[2:])


@pytest.mark.parametrize("error", [JobFailed, GraphRefused, InvalidRequest])
def test_a_failed_job_stops_nothing_and_is_tried_again_by_the_next_run(tmp_path, error):
    path, out = job_file(tmp_path, {"prompt": "bad", "id": "bad"}, FOG), tmp_path / "out"
    first = Painter(does=lambda request: error("It broke.") if request.prompt == "bad" else None)
    report = run(path, out, first)
    assert counts(report) == (1, 0, 1, 0, 0)
    (failure,) = report.failures
    assert (failure.job, failure.line, failure.kind, failure.message) == ("bad", 1, error.kind, "It broke.")
    assert report.exit_code == error.exit_code
    second = Painter()
    assert counts(run(path, out, second)) == (1, 0, 0, 1, 0) and second.made == [first.made[0]]


def test_a_lost_servers_job_goes_to_another_under_the_same_id(tmp_path):
    def lose(request):
        broken.there = False
        return ServerUnreachable("It is gone.")

    broken, whole, events = Painter("broken", lose), Painter("whole"), []
    path = job_file(tmp_path, *(FOG | {"seed": seed} for seed in range(6)))
    report = run(path, tmp_path / "out", broken, whole, on_event=events.append)
    assert counts(report) == (6, 0, 0, 0, 0) and report.exit_code == 0
    assert set(broken.made) < set(whole.made) and len(set(whole.made)) == 6
    assert [(share.worker, share.jobs) for share in report.workers] == [("broken", 0), ("whole", 6)]
    assert [event.worker for event in events if isinstance(event, batch.WorkerNotice)] == ["broken"]
    assert [event.finished for event in events if isinstance(event, batch.JobOver)] == [1, 2, 3, 4, 5, 6]


def test_a_server_that_comes_back_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "PROBE", 0.01)
    path = job_file(tmp_path, FOG, FOG, FOG, FOG)
    late = Painter("late", there=False)

    class Slow(Painter):
        async def make(self, request, job_id, folder):
            late.there = True
            while len(late.made) < 2:  # never ends alone
                await asyncio.sleep(0.01)
            return await super().make(request, job_id, folder)

    events = []
    report = run(path, tmp_path / "out", Slow("slow"), late, on_event=events.append)
    assert counts(report) == (4, 0, 0, 0, 0) and [share.jobs for share in report.workers] == [2, 2]
    assert [event.text for event in events if isinstance(event, batch.WorkerNotice)][-1] == "late is back."


def test_a_job_that_ends_one_server_after_the_other_is_given_up(tmp_path):
    painter = Painter(does=lambda request: ServerUnreachable("gone") if request.prompt == "bomb" else None)
    report = run(job_file(tmp_path, {"prompt": "bomb"}, FOG, FOG), tmp_path / "out", painter)
    assert counts(report) == (2, 0, 1, 0, 0) and report.exit_code == ServerUnreachable.exit_code
    assert prompts(painter).count("bomb") == dispatch.LOSSES


def test_without_a_server_the_run_ends_with_what_is_done(tmp_path):
    def lose_after_two(request):
        if len(painter.made) > 2:
            painter.there = False
            return ServerUnreachable("It is gone.")

    path, out = job_file(tmp_path, *[FOG] * 5), tmp_path / "out"
    painter = Painter(does=lose_after_two)
    report = run(path, out, painter, Painter("never", there=False))
    assert counts(report) == (2, 0, 0, 0, 3)
    assert report.stopped.exit_code == report.exit_code == ServerUnreachable.exit_code
    assert "No answer from a." in str(report) and "No answer from never." in str(report)
    assert counts(run(path, out, Painter())) == (3, 0, 0, 2, 0)


@pytest.mark.parametrize("error", [ModelsMissing, OutOfMemory])
def test_what_one_server_lacks_another_may_have(tmp_path, error):
    small = Painter("small", lambda request: error("Too small.") if request.prompt == "large" else None)
    path = job_file(tmp_path, {"prompt": "large"}, FOG, FOG, FOG)
    report = run(path, tmp_path / "out", small, Painter("large"))
    assert counts(report) == (4, 0, 0, 0, 0) and prompts(small).count("large") <= 1


def test_what_every_server_lacks_is_a_failure(tmp_path):
    lacking = [Painter(name, lambda request: ModelsMissing("None here.")) for name in "ab"]
    report = run(job_file(tmp_path, FOG), tmp_path / "out", *lacking)
    assert counts(report) == (0, 0, 1, 0, 0) and report.exit_code == ModelsMissing.exit_code
    assert [len(painter.made) for painter in lacking] == [1, 1]


def test_a_job_that_a_server_was_given_before_a_kill_is_looked_for_there(tmp_path):
    """Each line has its holder in the folder, as a killed run leaves it."""
    path, out = job_file(tmp_path, *[FOG] * 4), tmp_path / "out"
    run(path, out, Painter("b", lambda request: JobFailed("killed here")))
    a, b = Painter("a"), Painter("b")
    assert counts(run(path, out, a, b)) == (4, 0, 0, 0, 0)
    assert a.made == [] and len(b.made) == 4


def test_cancelled_it_keeps_what_is_finished_and_asks_anew(tmp_path):
    class Waiting(Painter):
        async def make(self, request, job_id, folder):
            if request.prompt != "long":
                return await super().make(request, job_id, folder)
            self.made.append((request.prompt, job_id))
            await asyncio.sleep(60)

    path, out, painter = job_file(tmp_path, FOG, {"prompt": "long", "seed": 1}), tmp_path / "out", Waiting()

    def interrupt(event):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(path, out, painter, on_event=interrupt)
    assert counts(batch.Report.model_validate_json((out / "report.json").read_text())) == (1, 0, 0, 0, 1)
    again = Painter()
    assert counts(run(path, out, again)) == (1, 0, 0, 1, 0)
    assert again.made == [("long", next_id(painter.made[-1][1]))]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_full_disk_stops_the_run_with_its_own_code(tmp_path, jobs):
    path = job_file(tmp_path, *[FOG] * jobs)
    report = run(path, tmp_path / "out", Painter(does=lambda request: CannotSave("full")))
    assert report.exit_code == CannotSave.exit_code and report.stopped.message == "full" and report.left == jobs


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CannotSave, match=r"out could not be written"):
        run(job_file(tmp_path, FOG), tmp_path / "out", Painter())


HOLDER = """
import sys, time
from pathlib import Path
from krea_client.batch.folder import Folder
with Folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_one_ends_even_by_kill(tmp_path):
    path, out = job_file(tmp_path, FOG), tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLDER, out], stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CannotSave, match="Another krea-client batch"):
            run(path, out, Painter())
        holder.kill()
    assert counts(run(path, out, Painter())) == (1, 0, 0, 0, 0)


def test_ray_is_named_as_an_extra_where_it_is_missing(tmp_path, monkeypatch):
    from krea_client.errors import ExtraMissing

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExtraMissing, match=r'pip install "\.\[ray\]"'):
        asyncio.run(batch.run(job_file(tmp_path, FOG), tmp_path / "out", ray_pool.workers(["http://127.0.0.1:1"])))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "127.0.0.1:port"])
def test_an_address_where_no_ray_is_is_told_at_once(tmp_path, address):
    pytest.importorskip("ray")
    workers = ray_pool.workers(["http://127.0.0.1:1"], address=address)
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable, match=f"No Ray cluster at {address}"):
        asyncio.run(batch.run(job_file(tmp_path, FOG), tmp_path / "out", workers))
    assert time.monotonic() - begun < 2 * ray_pool.ADDRESS_LIMIT


def test_a_picture_from_ray_that_the_disk_does_not_take_is_told_in_words(tmp_path, monkeypatch):
    async def answer(self, reference):
        return "", {"krea_5.png": b"picture"}

    monkeypatch.setattr(ray_pool.RayWorker, "_answer", answer)
    worker = ray_pool.RayWorker("ray worker 1", MagicMock(), 2)
    with pytest.raises(CannotSave, match=r"krea_5\.png could not be written"):
        asyncio.run(worker.make(Request(**FOG), str(uuid.uuid4()), tmp_path / "gone"))


def test_a_machine_that_takes_no_files_is_lost_as_a_worker_and_does_not_end_the_batch(tmp_path, monkeypatch):
    async def full(*_):
        raise CannotSave("/tmp/krea_5.png could not be written")

    async def refused(step):
        painter = ray_pool._Painter("http://127.0.0.1:9", None, {})
        with pytest.raises(ServerUnreachable, match="does not take the pictures of its Ray worker"):
            await step(painter)

    def make(painter):
        return painter.make(FOG, str(uuid.uuid4()))

    with monkeypatch.context() as patched:
        patched.setattr(ray_pool, "make", full)
        asyncio.run(refused(make))
    with monkeypatch.context() as patched:
        patched.setattr(ray_pool.shutil, "disk_usage", lambda _: SimpleNamespace(free=ray_pool.ROOM - 1))
        asyncio.run(refused(ray_pool._Painter.ready))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    asyncio.run(refused(make))
    asyncio.run(refused(ray_pool._Painter.ready))


@pytest.mark.parametrize("command", ["python main.py --port 8188", 'python "main.py --port {port}'])
def test_a_command_must_say_where_the_port_goes(tmp_path, command):
    with pytest.raises(InvalidRequest, match="The command"):
        asyncio.run(batch.run(job_file(tmp_path, FOG), tmp_path / "out", ray_pool.workers(command=command)))


def test_a_comfyui_that_does_not_start_says_why(tmp_path):
    command = f"{sys.executable} -c 'import sys; print(\"no model for port\", sys.argv[1]); sys.exit(3)' {{port}}"

    async def start():
        await ComfyProcess(command, str(tmp_path)).ensure()

    with pytest.raises(ServerUnreachable, match=r"exit code 3(.|\n)*no model for port \d+"):
        asyncio.run(start())
    with pytest.raises(ServerUnreachable, match="cannot be started in .*nowhere"):
        asyncio.run(ComfyProcess(command, str(tmp_path / "nowhere")).ensure())


STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Ray on Linux kills the children of a worker, too")
@pytest.mark.parametrize("killed", ["worker", "leash"])
def test_a_comfyui_ends_with_its_worker(tmp_path, killed):
    pid_file = tmp_path / "pid"
    leash = ROOT / "krea_client" / "batch" / "leash.py"
    command = [sys.executable, "-c", PARENT, leash, sys.executable, "-c", STUBBORN, pid_file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        leash_pid = int(parent.stdout.readline())
        while not pid_file.exists() or not pid_file.read_text():
            time.sleep(0.05)
        os.kill(parent.pid if killed == "worker" else leash_pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while alive(int(pid_file.read_text())):
            assert time.monotonic() < deadline, "The command still runs."
            time.sleep(0.1)
        parent.kill()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as status:
        return status.read().rsplit(")", 1)[1].split()[0] != "Z"
