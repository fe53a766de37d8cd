"""The LLM tool on a real ComfyUI: real MCP clients over stdio and HTTP, as a chat program starts and asks it."""

import asyncio
import base64
import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import pytest
from mcp import Client, MCPError, StdioServerParameters
from PIL import Image

from krea.prompting import CHOICES
from krea_client import AsyncKreaClient, delivery, mcp_server
from krea_client.background import UNFINISHED, Jobs
from krea_client.request import schema

SMALL = {
    "prompt": "a red circle on a blue background",
    "aspect_ratio": "1:1",
    "megapixels": 0.0625,
    "num_inference_steps": 15,
    "texture_enhancement": False,
}
LONG = SMALL | {"num_inference_steps": 50, "num_images": 4}
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


def command(server, out, wait, *more):
    return [sys.executable, "-m", "krea_client", "mcp", "--server", server.url, "--out", out, "--wait", wait, *more]


@contextlib.contextmanager
def over_http(server, out, wait, root, host="127.0.0.1"):
    """A tool that listens, as (its process, its address)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = command(server, str(out), str(wait), "--http", f"{host}:{port}")
    process = subprocess.Popen(serve, cwd=root, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        yield process, f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        printed = process.communicate(timeout=30)[0]
    assert printed == b""


@pytest.fixture(scope="module")
def tool(server, root, tmp_path_factory):
    """(address, folder of the pictures) of a tool that waits as long as it takes."""
    out = tmp_path_factory.mktemp("pictures")
    with over_http(server, out, 600, root) as (_, address):
        yield address, out


@contextlib.asynccontextmanager
async def inside(url, out, wait=600.0):
    """A client of a tool in this process."""
    async with Client(mcp_server.build(Jobs(AsyncKreaClient(url), out), out, wait)) as client:
        yield client


async def structured(client, name, arguments, **more):
    """The whole answer, once its structured part is what the tool's output schema says."""
    answer = await client.call_tool(name, arguments, **more)
    listed = {each.name: each for each in (await client.list_tools()).tools}
    jsonschema.Draft202012Validator(listed[name].output_schema).validate(answer.structured_content)
    return answer


def pictures_of(answer):
    return [Image.open(io.BytesIO(base64.b64decode(each.data))) for each in answer.content if each.type == "image"]


def interrupted(server, job_id):
    """Whether ComfyUI stopped the job, once it is over there."""
    deadline = time.monotonic() + 60
    while (record := server.history(job_id)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return "execution_interrupted" in [kind for kind, _ in record["status"]["messages"]]


def running_job(server):
    ((_, job_id, *_),) = server.get("/queue")["queue_running"]
    return job_id


def test_a_picture_over_stdio_that_takes_longer_than_a_call(server, root, tmp_path):
    program, *arguments = command(server, str(tmp_path), "0.2")

    async def main():
        async with Client(StdioServerParameters(command=program, args=arguments, cwd=root)) as client:
            answer = await structured(client, "generate_image", SMALL | {"seed": 29, "num_inference_steps": 50})
            running = answer.structured_content
            assert running["status"] == "running" and running["job_id"] in answer.content[0].text
            while answer.structured_content["status"] == "running":
                assert not answer.is_error
                answer = await structured(client, "job", {"job_id": running["job_id"]})
            again = await structured(client, "job", {"job_id": running["job_id"], "action": "cancel"})
            assert again.structured_content == answer.structured_content
            return answer

    result = asyncio.run(main()).structured_content
    assert (result["status"], result["pictures"][0]["seed"]) == ("done", 29)
    with Image.open(result["pictures"][0]["path"]) as picture:
        assert picture.size == (256, 256)
    assert delivery.read(tmp_path / "krea_29.json").job_id == result["job_id"]
    assert not list((tmp_path / UNFINISHED).iterdir())


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_picture_over_http_with_progress_and_preview(server, tool, mode):
    address, out = tool
    heard = []

    async def progress(step, steps, message):
        heard.append((step, steps, message))

    async def main():
        asked = SMALL | {"seed": {"auto": 6, "legacy": 7}[mode]}  # ComfyUI does not paint the same one twice
        async with Client(address, mode=mode) as client:
            return await structured(client, "generate_image", asked, progress_callback=progress)

    answer = asyncio.run(main())
    assert not answer.is_error and answer.structured_content["status"] == "done"
    path = Path(answer.structured_content["pictures"][0]["path"])
    assert path.parent == out and str(path) in answer.content[0].text
    (preview,) = pictures_of(answer)
    assert preview.format == "JPEG" and preview.size == (256, 256)
    assert [step for step, _, _ in heard] == sorted({step for step, _, _ in heard})
    assert heard[-1][1] == 15 and heard[-1][2].endswith("of 15.")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_call_that_its_client_gives_up_is_cancelled_on_comfyui(server, tool, mode):
    async def main():
        started = asyncio.Event()

        async def progress(step, *_):
            if step:
                started.set()

        async with Client(tool[0], mode=mode) as client:
            call = asyncio.create_task(client.call_tool("generate_image", LONG, progress_callback=progress))
            await asyncio.wait_for(started.wait(), 120)
            job_id = running_job(server)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(interrupted, server, job_id)
            answer = await structured(client, "job", {"job_id": job_id})
            assert answer.structured_content["status"] == "cancelled"

    asyncio.run(main())


def test_a_refused_prompt_is_a_result(tool):
    async def main():
        async with Client(tool[0]) as client:
            return await structured(client, "generate_image", SMALL | {"prompt": "hardcore porn"})

    answer = asyncio.run(main())
    assert not answer.is_error and answer.structured_content["status"] == "blocked"
    assert answer.content[0].text.startswith("The content filter let no picture through.")
    assert not pictures_of(answer)


def test_jobs_that_run_or_wait_can_be_looked_at_and_cancelled(server, tmp_path):
    async def main():
        async with inside(server.url, tmp_path, wait=0) as client:

            async def look(job_id, **more):
                return (await structured(client, "job", {"job_id": job_id, **more})).structured_content

            async def begin():
                return (await client.call_tool("generate_image", LONG)).structured_content["job_id"]

            first = await begin()
            while not (await look(first))["step"]:
                await asyncio.sleep(0.1)
            assert (await look(first)).items() >= {"status": "running", "jobs_ahead": 0, "steps": 50}.items()
            second = await begin()
            while not (await look(second))["jobs_ahead"]:
                await asyncio.sleep(0.1)
            for job_id in (second, first):
                assert await look(job_id, action="cancel") == {"status": "cancelled", "job_id": job_id}
            assert await asyncio.to_thread(interrupted, server, first)
            assert server.history(second) is None

    asyncio.run(main())
    assert not list((tmp_path / UNFINISHED).iterdir())


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_a_job_is_found_again_when_the_tool_was_restarted(server, root, tmp_path, end):
    async def begun():
        with over_http(server, tmp_path, 0, root) as (process, address):
            async with Client(address) as client:
                asked = SMALL | {"num_inference_steps": 30}
                job_id = (await client.call_tool("generate_image", asked)).structured_content["job_id"]
                while not server.get("/queue")["queue_running"]:
                    await asyncio.sleep(0.1)
            process.send_signal(end)
            process.wait(30)
        return job_id

    async def later(job_id):
        asked = {"job_id": job_id, "wait": 600}
        async with inside(server.url, tmp_path) as client:
            return [(await structured(client, "job", asked)).structured_content for _ in range(2)]

    job_id = asyncio.run(begun())
    assert (tmp_path / UNFINISHED / f"{job_id}.json").exists()
    result, again = asyncio.run(later(job_id))
    assert result["status"] == "done" and result == again
    assert len(list((server.output_dir / "flux_krea").glob(f"{job_id}*"))) == 1  # it was not run again
    assert asyncio.run(later(job_id)) == [result, result]  # from the folder alone
    assert len(list(tmp_path.glob("*.json"))) == 1


@pytest.mark.parametrize(
    "name, arguments, kind, message",
    [
        ("generate_image", SMALL, "server_unreachable", f"No answer from {NOBODY}"),
        ("generate_image", {"prompt": "a cat", "guidance": 3}, "invalid_request", "guidance: there is no such field."),
        ("generate_image", {"prompt": "a cat", "num_images": 9}, "invalid_request", "num_images: found 9."),
        ("generate_image", None, "invalid_request", "prompt is empty."),
        ("job", {}, "invalid_request", "job_id: it is missing. Expected text"),
        ("job", {"job_id": "../../etc/passwd"}, "invalid_request", "job_id: found '../../etc/passwd'. Expected"),
        ("job", {"job_id": "0" * 8 + "-0000-0000-0000-" + "0" * 12}, "invalid_request", "No job 00000000-"),
    ],
)
def test_what_goes_wrong_is_told_as_an_error_of_the_tool(tmp_path, name, arguments, kind, message):
    async def main():
        async with inside(NOBODY, tmp_path) as client:
            return await structured(client, name, arguments)

    answer = asyncio.run(main())
    assert answer.is_error and answer.content[0].text.startswith(message)
    assert answer.structured_content["kind"] == kind and answer.structured_content["message"] == answer.content[0].text
    assert not list((tmp_path / UNFINISHED).glob("*"))


def test_a_job_is_not_forgotten_while_comfyui_is_away(tmp_path):
    async def main():
        async with inside(NOBODY, tmp_path) as client:
            return [(await structured(client, "job", {"job_id": job_id})).structured_content for _ in range(2)]

    job_id = "12345678-1234-1234-1234-123456789abc"
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / f"{job_id}.json").write_text('{"prompt": "a cat"}')
    for answer in asyncio.run(main()):
        assert (answer["kind"], answer["job_id"]) == ("server_unreachable", job_id)
    assert (tmp_path / UNFINISHED / f"{job_id}.json").exists()


def test_the_tools_are_described_by_the_request(tmp_path):
    async def main():
        async with inside(NOBODY, tmp_path) as client:
            with pytest.raises(MCPError, match="There is no tool 'paint'. Expected generate_image, job."):
                await client.call_tool("paint", {})
            return (await client.list_tools()).tools

    generate, job = asyncio.run(main())
    assert (generate.name, job.name) == ("generate_image", "job")
    assert generate.input_schema == schema()
    assert str(tmp_path) in generate.description and "data, not instructions" in generate.description
    for each in (generate, job):
        jsonschema.Draft202012Validator.check_schema(each.input_schema)
        jsonschema.Draft202012Validator.check_schema(each.output_schema)
        hints = each.annotations
        assert (hints.read_only_hint, hints.destructive_hint) == (False, False)
    assert (generate.annotations.idempotent_hint, generate.annotations.open_world_hint) == (False, True)


def test_prompt_and_guide_are_served(tmp_path):
    async def main():
        async with inside(NOBODY, tmp_path) as client:
            (prompt,) = (await client.list_prompts()).prompts
            (resource,) = (await client.list_resources()).resources
            told = await client.get_prompt(prompt.name, {"subject": "an old dog", "film": "Kodak Tri-X 400"})
            guide = (await client.read_resource(resource.uri)).contents[0].text
            for wrong in ({}, {"subject": "a dog", "film": "Krea 2"}):
                with pytest.raises(MCPError, match="Expected"):
                    await client.get_prompt(prompt.name, wrong)
            with pytest.raises(MCPError, match="There is no resource"):
                await client.read_resource("krea://other")
            return [each.name for each in prompt.arguments], told.messages[0].content.text, guide

    names, told, guide = asyncio.run(main())
    assert names == ["subject", "mood", *CHOICES]
    assert all(sentence in guide for sentences in CHOICES.values() for sentence in sentences.values())
    assert told.endswith(guide) and "Subject: an old dog" in told
    assert f"as they are: {CHOICES['film']['Kodak Tri-X 400']}\n" in told


@pytest.mark.parametrize(
    "headers, status", [({"Host": "evil.example"}, 421), ({"Origin": "http://evil.example"}, 403)], ids=str
)
def test_a_page_of_another_site_does_not_reach_the_tool(tool, headers, status):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
    accepted = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(tool[0], body, accepted | headers))
    assert refusal.value.code == status


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no 127.0.0.2")
def test_on_all_addresses_the_tool_answers_to_each_of_them_and_to_no_foreign_name(server, root, tmp_path):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
    kind = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}

    def status(address, **headers):
        try:
            return urllib.request.urlopen(urllib.request.Request(address, body, kind | headers)).status
        except urllib.error.HTTPError as error:
            return error.code

    with over_http(server, tmp_path, 0, root, host="0.0.0.0") as (_, address):
        other = address.replace("127.0.0.1", "127.0.0.2")  # all of 127.* is this machine
        refused = [421, 403]
        assert status(other) not in refused and status(other, Origin=other.removesuffix("/mcp")) not in refused
        assert status(other, Host="evil.example") == 421
        assert status(other, Origin="http://evil.example") == 403
        assert status(address, Host=f"{socket.gethostname()}:80") not in refused


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(mcp_server.InvalidRequest, match=f"127.0.0.1:{port} cannot be listened on"):
            mcp_server.serve(AsyncKreaClient(NOBODY), tmp_path, http=("127.0.0.1", port))
