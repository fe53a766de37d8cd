"""What the client says of a server that is none or too old, of a graph that is refused and of a full disk."""

import json
import os
import re
import subprocess
import sys

import pytest
from aiohttp import web

from dev.host import ComfyHost
from krea_client import KreaClient, errors
from tests.server.proxy import Proxy, changing
from tests.server.small_jobs import runs, small


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
    before = runs(server)
    with KreaClient(server.url) as client:
        result = client.generate(request, tmp_path, job_id=job_id)
    assert len(result.paths) == 2 and runs(server) == before


def test_a_folder_that_cannot_be_made_is_told_before_the_job_costs_anything(server, tmp_path):
    (tmp_path / "file").write_text("here")
    before = runs(server)
    with KreaClient(server.url) as client, pytest.raises(errors.CannotSave, match="cannot be made"):
        client.generate(small(), tmp_path / "file")
    assert runs(server) == before
