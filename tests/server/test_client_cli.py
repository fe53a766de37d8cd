"""The command krea-client in a process of its own, against a real ComfyUI."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image, ImageChops

from krea_client import cli
from krea_client.result import Result
from tests.server.proxy import Proxy

SMALL = ["--aspect-ratio", "1:1", "--megapixels", "0.0625", "--num-inference-steps", "15", "--no-texture-enhancement"]
NO_SIGNALS = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
STAR = ["a green star on a white background", *SMALL]


def environment(server) -> dict[str, str]:
    return {**os.environ, "KREA_SERVER": server.url, "PYTHONIOENCODING": "utf-8"}


def run(server, root: Path, *arguments: str, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "krea_client", *map(str, arguments)]
    settings = {"env": environment(server), "timeout": 300} | settings
    return subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", **settings)


@pytest.fixture(scope="module")
def made(server, root, tmp_path_factory) -> tuple[Result, Path]:
    """Two pictures of one job."""
    folder = tmp_path_factory.mktemp("made")
    done = run(server, root, "generate", *STAR, "--seed", 5, "--num-images", 2, "--out", folder, "--json")
    assert done.returncode == 0, done.stderr
    return Result.model_validate_json(done.stdout), folder


def test_generate_writes_the_pictures_and_says_all_of_them_as_json(made):
    result, folder = made
    assert [picture.seed for picture in result.pictures] == [5, 6]
    assert sorted(path.name for path in folder.iterdir()) == ["krea_5.json", "krea_5.png", "krea_6.png"]
    for picture in result.pictures:
        data = Path(picture.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == picture.sha256
        assert (picture.width, picture.height) == (256, 256)
        assert picture.verdict.decision == "pass"
    assert result.settings["guidance_scale"] == 4.5
    assert result.server.comfyui
    assert result.models["FLUX.1 VAE"] == "krea_mini_vae.safetensors"
    assert Result.model_validate_json((folder / "krea_5.json").read_bytes()) == result


def test_vary_makes_one_image_of_the_batch_again(made, server, root, tmp_path):
    earlier, folder = made
    done = run(server, root, "vary", folder / "krea_5.json", "--image", 2, "--out", tmp_path, "--json")
    again = Result.model_validate_json(done.stdout)
    assert [picture.seed for picture in again.pictures] == [6]
    with Image.open(again.paths[0]) as one, Image.open(earlier.paths[1]) as other:
        difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    assert max(high for _, high in difference.getextrema()) <= 2  # a batch rounds differently from one image


def test_vary_with_seeds_makes_a_picture_for_each(made, server, root, tmp_path):
    _, folder = made
    done = run(server, root, "vary", folder / "krea_5.json", "--seeds", 5, 8, "--out", tmp_path, "--json")
    results = json.loads(done.stdout)["results"]
    assert [result["pictures"][0]["seed"] for result in results] == [5, 8]


def test_grid_writes_a_sheet_of_all_combinations(server, root, tmp_path):
    axes = ["--guidance-scale", 1, 8, "--seed", 5]
    done = run(server, root, "grid", *STAR, *axes, "--out", tmp_path, "--json")
    answer = json.loads(done.stdout)
    assert [each["settings"]["guidance_scale"] for each in answer["results"]] == [1.0, 8.0]
    with Image.open(answer["sheet"]) as sheet:
        assert sheet.width == 2 * sheet.height - 52


@pytest.mark.parametrize("end", ["failure", pytest.param("Ctrl-C", marks=NO_SIGNALS)])
@pytest.mark.parametrize("command", ["grid", "vary"])
def test_what_is_finished_is_told_when_the_next_picture_is_not_made(made, server, tmp_path, capsys, command, end):
    jobs = itertools.count(1)

    async def rule(request, forward):
        if request.path == "/prompt" and next(jobs) == 2:
            if end == "failure":
                return web.Response(status=403)
            os.kill(os.getpid(), signal.SIGINT)
        return await forward()

    asked = {"grid": [*STAR, "--seed", "21", "22"], "vary": [str(made[1] / "krea_5.json"), "--seeds", "21", "22"]}
    with Proxy(server.url, rule) as proxy:
        code = cli.main([command, *asked[command], "--server", proxy.url, "--out", str(tmp_path), "--json"])
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert [each["pictures"][0]["path"] for each in answer["results"]] == [str(tmp_path / "krea_21.png")]
    assert (code, answer["error"]["kind"]) == {"failure": (3, "access_denied"), "Ctrl-C": (130, "cancelled")}[end]
    assert {"failure": "HTTP 403", "Ctrl-C": "cancelled"}[end] in told.err


def test_without_json_people_read_paths_seeds_and_settings(server, root, tmp_path):
    done = run(server, root, "generate", *STAR, "--seed", 5, "--out", tmp_path)
    assert f"{tmp_path / 'krea_5.png'}  256x256 px, seed 5" in done.stdout
    assert "guidance scale 4.5" in done.stdout
    assert "Step 15 of 15" in done.stderr or "Finished" in done.stderr


@pytest.mark.parametrize("answer", [[], ["--json"]], ids=["text", "json"])
def test_an_output_that_lacks_letters_of_the_prompt_and_path_gets_them_escaped(server, root, tmp_path, answer):
    out = tmp_path / "富士山"
    words = ["富士山", *SMALL, "--seed", 5, "--out", out, *answer]
    done = run(server, root, "generate", *words, env=environment(server) | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0, done.stderr
    if answer:
        assert Result.model_validate_json(done.stdout).paths == [str(out / "krea_5.png")]
    else:
        assert r"\u5bcc\u58eb\u5c71" in done.stdout


def test_a_refused_prompt_is_a_result_with_an_exit_code_of_its_own(server, root, tmp_path):
    done = run(server, root, "generate", "hardcore porn", *SMALL, "--out", tmp_path, "--json")
    result = Result.model_validate_json(done.stdout)
    assert (done.returncode, result.status, result.paths) == (9, "blocked", [])
    assert result.prompt_verdict.decision == "block"
    assert result.prompt_verdict.reasons


def test_batch_makes_each_job_once_and_goes_on_where_it_stopped(server, root, tmp_path):
    job = {"aspect_ratio": "1:1", "megapixels": 0.0625, "num_inference_steps": 15, "texture_enhancement": False}
    lines = [job | {"id": "star", "prompt": STAR[0], "seed": 5}, job | {"id": "bad", "prompt": "hardcore porn"}]
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    jobs.write_text("\n".join(map(json.dumps, lines)))
    first = json.loads(run(server, root, "batch", jobs, "--out", out, "--json").stdout)
    assert (first["done"], first["blocked"], first["skipped"]) == (1, 1, 0)
    jobs.write_text("\n".join(map(json.dumps, [*lines, job | {"id": "more", "prompt": STAR[0], "seed": 6}])))
    done = run(server, root, "batch", jobs, "--out", out)
    assert "1 done, 0 blocked, 0 failed, 2 finished before" in done.stdout
    assert "more: done (3 of 3)" in done.stderr
    assert done.returncode == 0
    assert sorted(path.name for path in out.rglob("*.png")) == ["krea_5.png", "krea_6.png"]


def test_a_wrong_line_of_a_batch_runs_nothing(server, root, tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "seed": -1}\n')
    done = run(server, root, "batch", tmp_path / "jobs.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "line 2: seed: found -1" in done.stderr
    assert not list(tmp_path.rglob("*.png"))


def test_models_and_server_say_what_is_there(server, root):
    files = json.loads(run(server, root, "models", "--json").stdout)
    assert {row["file"] for row in files} == {path.name for _, path in server.models}
    status = json.loads(run(server, root, "server", "--json").stdout)
    assert (status["url"], status["pack"], status["device"]) == (server.url, "0.1.0", "cpu")


def test_a_missing_model_is_named_with_what_the_server_offers(server, root, tmp_path):
    done = run(server, root, "generate", *STAR, "--model", "vae=ae.safetensors", "--out", tmp_path)
    assert done.returncode == 5
    assert "ae.safetensors" in done.stderr
    assert "krea_mini_vae.safetensors" in done.stderr


@NO_SIGNALS
def test_ctrl_c_cancels_the_job_on_the_server(server, root, tmp_path):
    slow = [*STAR[:-3], "--num-inference-steps", "50", "--num-images", "4", "--out", tmp_path]
    command = [sys.executable, "-m", "krea_client", "generate", *map(str, slow)]
    process = subprocess.Popen(command, cwd=root, env=environment(server), stderr=subprocess.PIPE, text=True)
    job_id = process.stderr.readline().split()[-1].rstrip(",")
    while "Step 1 " not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    deadline = time.monotonic() + 60
    while (record := server.history(job_id)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "execution_interrupted" in [kind for kind, _ in record["status"]["messages"]]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals of this kind")
def test_on_a_terminal_a_bar_and_the_growing_picture_are_shown(server, root, tmp_path):
    import fcntl
    import pty
    import struct
    import termios
    import threading

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 800, 800))  # rows, columns, pixels
    shown = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                shown.extend(chunk)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    command = [
        sys.executable,
        "-m",
        "krea_client",
        "generate",
        *STAR,
        "--seed",
        "77",
        "--preview",
        "--out",
        str(tmp_path),
    ]
    settings = environment(server) | {
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
    done = subprocess.run(command, cwd=root, env=settings, stdin=theirs, stdout=theirs, stderr=theirs, timeout=300)
    os.close(theirs)
    reader.join(10)
    text = shown.decode(errors="replace")
    assert done.returncode == 0, text[-2000:]
    assert "Sampler" in text
    assert "/15" in text
    assert "\u2584" in text or "\u2580" in text  # half blocks: a picture in a terminal without graphics
    assert "krea_77.png" in text
