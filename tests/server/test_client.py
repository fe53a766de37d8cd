"""The client on a real ComfyUI: from a request to pictures, and what happens on the way."""

import asyncio
import base64
import gc
import hashlib
import io
import json
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from dev.client import images_of
from dev.host import link
from krea import VERSION, disclosure
from krea_client import AsyncKreaClient, KreaClient, Request, delivery, job
from krea_client.errors import InvalidRequest, JobInterrupted, ModelsMissing, ServerUnreachable, TimeLimit
from krea_client.events import Finished, Preview, Progress, Queued, Started
from krea_client.graph import build, slots
from tests.server.proxy import Proxy
from tests.server.small_jobs import PLAIN, pixels, runs, saved, small

LONG = small(seed=90, num_images=4, num_inference_steps=50, true_cfg_scale=2)  # longer than any test waits


@pytest.fixture
def client(server):
    with KreaClient(server.url) as client:
        yield client


def assert_idle(server):
    """The server has nothing to do, or soon stops between two steps."""
    until = time.monotonic() + 60
    while (queue := server.get("/queue"))["queue_running"] + queue["queue_pending"]:
        assert time.monotonic() < until, "the server still works"
        time.sleep(0.1)


def test_what_happens_is_told_in_order_and_the_result_holds_it_all(server, client, tmp_path):
    request = small(seed=5, num_images=3)
    events = list(client.events(request, tmp_path, previews=True))
    kinds = [type(event) for event in events if not isinstance(event, Preview)]
    assert kinds == [Queued, Started, *[Progress] * 15, Finished]
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(event.node, event.step, event.steps) for event in steps] == [("sampler", n, 15) for n in range(1, 16)]
    previews = [event for event in events if isinstance(event, Preview)]
    assert len(previews) >= 5
    for preview in (previews[0], previews[-1]):
        assert Image.open(io.BytesIO(preview.image)).get_format_mimetype() == preview.mime_type

    result = events[-1].result
    assert {event.job_id for event in events} == {result.job_id} and result.status == "done"
    assert [picture.seed for picture in result.pictures] == [5, 6, 7]
    assert result.paths == [str(tmp_path / f"krea_{seed}.png") for seed in (5, 6, 7)]
    for picture, on_server in zip(result.pictures, saved(server, result.job_id), strict=True):
        data = Path(picture.path).read_bytes()
        assert data == on_server.read_bytes() and picture.sha256 == hashlib.sha256(data).hexdigest()
        assert (picture.width, picture.height) == (256, 256) == Image.open(picture.path).size
        assert (picture.verdict.decision, picture.verdict.outcome) == ("pass", "pass")
    assert Request.read(result.request) == request and result.settings["guidance_scale"] == 4.5
    assert result.prompt_verdict.decision == "pass" and result.notes == []
    assert (result.server.pack, result.server.device) == (VERSION, "cpu")
    assert set(result.models.values()) >= {"krea_mini_flux.safetensors", "krea_mini_t5.safetensors"}
    assert 0 < result.timings.ran < result.timings.total and result.timings.queued >= 0
    assert delivery.read(tmp_path / "krea_5.json") == result
    assert all(path in str(result) for path in result.paths)

    one = client.generate(small(seed=6), tmp_path / "alone")
    # The noise is the very same; a batch's sums are rounded otherwise.
    assert np.abs(pixels(one.paths[0]) - pixels(result.paths[1])).mean() < 1, "of 255 levels"


def test_the_picture_is_that_of_the_shipped_workflow(server, client, small_graph, tmp_path):
    graph = small_graph("text_to_image")
    graph["4"]["inputs"]["steps"] = 15
    result = client.generate(
        small(prompt=graph["2"]["inputs"]["prompt"], seed=2026, texture_enhancement=True), tmp_path
    )
    [image] = images_of(server.run(graph))
    assert (pixels(result.paths[0]) == pixels(io.BytesIO(server.view(image)))).all()


@pytest.mark.parametrize("name", ["text_to_image", "style_mix"])
def test_what_the_client_leaves_out_the_workflow_leaves_at_its_default(server, root, name):
    references = ["a@1", "b@0.7", "c@0.4"] if name == "style_mix" else []
    request = Request(prompt="x", seed=1, style_references=references)
    given = {}
    for node in build(request, dict.fromkeys(slots(request), "x"), dict.fromkeys(request.images, "x"), "p").values():
        given.setdefault(node["class_type"], set()).update(node["inputs"])
    info = server.object_info()
    workflow = json.loads((root / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        inputs = info[node["class_type"]]["input"]
        offered = inputs.get("required", {}) | inputs.get("optional", {})
        for key in node["inputs"].keys() - given[node["class_type"]]:
            settings = offered[key][1]
            default = settings.get("default", settings.get("options", [None])[0])
            assert node["inputs"][key] == default, (node["class_type"], key)


def test_references_come_from_a_path_an_address_and_a_data_uri(server, client, tmp_path):
    picture = tmp_path / "style.png"
    y, x = np.mgrid[0:96, 0:96].astype(np.uint8)
    Image.fromarray(np.stack((x, y, x // 2), -1)).save(picture)
    (server.input_dir / "client_style.png").write_bytes(picture.read_bytes())
    address = f"{server.url}/view?filename=client_style.png&type=input"
    uri = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    styled = client.generate(small(seed=8, style_references=[str(picture), address, f"{uri}@0.3"], **PLAIN), tmp_path)
    name = hashlib.sha256(picture.read_bytes()).hexdigest()[:32]
    assert [file.name for file in (server.input_dir / "flux_krea").glob(f"{name}*")] == [f"{name}.png"]
    assert [each["image"] for each in styled.request["style_references"]] == [str(picture), address, uri]
    plain = client.generate(small(seed=8, **PLAIN), tmp_path)
    assert plain.pictures[0].verdict is None and plain.prompt_verdict is None, "the filter is off"
    followed = client.generate(small(seed=8, prompt="", image_prompt=str(picture), **PLAIN), tmp_path)
    for one, other in ((styled, plain), (followed, plain), (followed, styled)):
        assert np.abs(pixels(one.paths[0]) - pixels(other.paths[0])).mean() > 0.5
    assert len({*styled.paths, *plain.paths, *followed.paths}) == 3, "the same seed, and nothing is overwritten"


@pytest.mark.parametrize(
    "output_format, suffix, said, source_type",
    [
        ("jpeg", ".jpg", "made by AI", "trainedAlgorithmicMedia"),
        ("webp", ".webp", "edited by AI", "compositeWithTrainedAlgorithmicMedia"),
        ("png", ".png", "none", None),
    ],
)
def test_the_file_is_of_the_format_and_says_what_was_asked(client, tmp_path, output_format, suffix, said, source_type):
    result = client.generate(small(seed=5, output_format=output_format, disclosure=said), tmp_path)
    [path] = map(Path, result.paths)
    assert path.name == f"krea_5{suffix}" and Image.open(path).format == output_format.upper()
    assert disclosure.read(path.read_bytes()).source_type == source_type


def test_reviewed_pictures_wait_on_the_server(server, client, tmp_path):
    result = client.generate(small(seed=5, num_images=2, content_filter="review"), tmp_path)
    assert result.status == "blocked" and result.paths == []
    assert {picture.verdict.outcome for picture in result.pictures} == {"hold for review"}
    waiting = {case["id"] for case in server.get("/flux_krea/review")["waiting"]}
    assert {picture.verdict.id for picture in result.pictures} <= waiting
    assert "let no picture through" in str(result) and "hold for review" in str(result)
    assert [file.name for file in tmp_path.iterdir()] == ["krea_5.json"] and saved(server, result.job_id) == []


@pytest.mark.parametrize("time", ["first", "second"])
def test_a_refused_prompt_is_a_result_also_when_the_server_knows_it(client, tmp_path, time):
    result = client.generate(small(seed=5, num_images=2, prompt="hardcore porn"), tmp_path)
    assert result.status == "blocked" and [picture.seed for picture in result.pictures] == [5, 6]
    assert result.prompt_verdict.decision == "block" and result.prompt_verdict.reasons
    assert str(result).splitlines()[1].startswith("The prompt: refused. ")


def test_notes_tell_what_does_nothing_and_no_more(client, tmp_path):
    result = client.generate(small(seed=5, prompt="a red circle " * 250, negative_prompt="blur", **PLAIN), tmp_path)
    cut, negative = result.notes
    assert "T5 reads the first 512 of" in cut and "true_cfg_scale is 1" in negative


def test_the_server_and_its_models_are_told(server, client):
    status = client.server()
    assert (status.url, status.pack, status.client, status.device) == (server.url, VERSION, VERSION, "cpu")
    assert status.comfyui == "0.30.0" and status.running == status.pending == 0 < status.memory_free
    assert all(found.file.startswith("krea_mini_") for found in client.models())


def test_a_model_file_that_has_gone_since_is_missing(server, client, tmp_path):
    client.models()
    [(folder, file)] = [each for each in server.models if each[1].name == "krea_mini_vae.safetensors"]
    (server.models_dir / folder / file.name).unlink()
    try:
        with pytest.raises(ModelsMissing, match="VAE: ae.safetensors"):
            client.generate(small(), tmp_path)
    finally:
        link(file, server.models_dir / folder / file.name)
    assert client.generate(small(), tmp_path).status == "done"


def test_async_jobs_share_a_client(server, tmp_path):
    async def both():
        async with AsyncKreaClient(server.url) as client:
            return await asyncio.gather(*(client.generate(small(seed=seed, **PLAIN), tmp_path) for seed in (5, 6)))

    assert [result.pictures[0].seed for result in asyncio.run(both())] == [5, 6]


def test_the_sync_client_works_inside_a_running_loop_as_in_a_notebook(server, tmp_path):
    async def cell():
        with KreaClient(server.url) as client:
            return client.generate(small(seed=5, **PLAIN), tmp_path)

    assert asyncio.run(cell()).status == "done"


def test_the_same_id_again_gives_the_same_files_without_a_run(server, client, tmp_path):
    job_id = str(uuid.uuid4())
    first = client.generate(small(seed=None), tmp_path, job_id=job_id)
    before = runs(server)
    with KreaClient(server.url) as another:
        again = another.generate(small(seed=None), tmp_path, job_id=job_id)
    assert again.pictures == first.pictures and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InvalidRequest, match=f"another job under the id {job_id}"):
        client.generate(small(prompt="a blue square"), tmp_path, job_id=job_id)
    assert runs(server) == before
    for wrong in ("7", job_id.upper()):
        with pytest.raises(InvalidRequest, match="Expected a UUID in lower case"):
            client.generate(small(), tmp_path, job_id=wrong)


def test_clients_with_the_same_id_at_the_same_moment_run_it_once(server, tmp_path):
    job_id = str(uuid.uuid4())
    barrier, results = threading.Barrier(3), []

    def ask(number):
        with KreaClient(server.url) as client:
            client.server()  # connected before the start
            barrier.wait()
            results.append(client.generate(small(seed=None, num_images=2), tmp_path / str(number), job_id=job_id))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(saved(server, job_id)) == 2
    hashes = {tuple(picture.sha256 for picture in result.pictures) for result in results}
    assert len(results) == 3 and len(hashes) == 1
    assert_idle(server)
    assert len(saved(server, job_id)) == 2


def test_the_time_limit_cancels_on_the_server(server, tmp_path):
    with KreaClient(server.url, time_limit=3) as client, pytest.raises(TimeLimit, match="within 3 s and was cancelled"):
        client.generate(LONG, tmp_path)
    assert_idle(server)
    assert list(tmp_path.iterdir()) == []


def test_a_time_limit_while_the_pictures_are_on_their_way_says_that_the_job_is_finished(
    server, client, hurry, tmp_path
):
    async def rule(request, forward):
        return web.Response(status=502) if request.path == "/view" else await forward()

    job_id = str(uuid.uuid4())
    client.generate(small(**PLAIN), tmp_path / "before", job_id=job_id)
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url, time_limit=2) as late:
        with pytest.raises(TimeLimit, match=f"is finished on .* within 2 s.* --job-id {job_id}") as caught:
            late.generate(small(**PLAIN), tmp_path / "after", job_id=job_id)
    assert "cancelled" not in str(caught.value)


def test_a_closed_client_says_so_and_leaves_nothing_behind(server, tmp_path, recwarn):
    with KreaClient(server.url) as client:
        events = client.events(small(), tmp_path)
        next(events)
    for ask in (client.server, client.models, lambda: client.generate(small(), tmp_path), events.__next__):
        with pytest.raises(ServerUnreachable, match=f"connection to {server.url} has been closed"):
            ask()
    gc.collect()
    assert not [each.message for each in recwarn if "never awaited" in str(each.message)]
    assert_idle(server)


def test_closing_the_events_cancels_on_the_server(server, client, tmp_path):
    events = client.events(LONG, tmp_path)
    next(event for event in events if isinstance(event, Progress))
    events.close()
    assert_idle(server)


def test_a_cancelled_job_says_so_and_runs_when_asked_for_again(server, client, tmp_path):
    job_id, request = str(uuid.uuid4()), small(seed=70, num_images=4)
    with pytest.raises(JobInterrupted, match="cancelled on the server"):
        for event in client.events(request, tmp_path, job_id=job_id):
            if isinstance(event, Progress):
                server.interrupt()
    assert client.generate(request, tmp_path, job_id=job_id).status == "done"


def test_a_job_taken_from_the_queue_is_not_handed_over_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "SILENCE", 0.5)
    job_id = str(uuid.uuid4())

    async def main():
        async with AsyncKreaClient(server.url) as client:
            ahead = client.events(LONG, tmp_path)
            async for event in ahead:
                if isinstance(event, Progress):
                    break
            seen = []

            async def waiting():
                async for event in client.events(small(), tmp_path, job_id=job_id):
                    seen.append(event)

            task = asyncio.create_task(waiting())
            while not any(isinstance(event, Queued) and event.ahead == 1 for event in seen):
                assert not task.done()
                await asyncio.sleep(0.1)
            await client.cancel(job_id)
            with pytest.raises(JobInterrupted, match="from the server's queue"):
                await task
            await ahead.aclose()

    asyncio.run(main())
    assert_idle(server)
    assert saved(server, job_id) == [] and job_id not in json.dumps(server.get("/history"))
