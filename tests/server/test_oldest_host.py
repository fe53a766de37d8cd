"""The pack on the oldest ComfyUI that pyproject.toml promises, in a folder of another name."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from dev import host as dev_host
from dev import small_model
from dev.client import images_of
from dev.environment import OLDEST_COMFYUI, fetch_comfyui
from dev.host import ComfyHost
from krea_client import KreaClient, Request
from krea_client.events import Finished, Preview, Progress, Queued, Started


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    base = tmp_path_factory.mktemp("oldest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dev_host, "PACK_FOLDER", "a pack of mine")
        with ComfyHost(base, small_model.FILES, comfyui=fetch_comfyui(OLDEST_COMFYUI)) as host:
            yield host


def picture(host, graph):
    (image,) = images_of(host.run(graph))
    return np.asarray(Image.open(io.BytesIO(host.view(image))).convert("RGB")).astype(int)


def test_promise_is_the_host_tested_here(root):
    assert f'requires-comfyui = ">={OLDEST_COMFYUI}"' in (root / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("workflow", ["text_to_image", "style_reference"])
def test_a_workflow_gives_the_picture_of_the_newest_host(oldest, server, small_graph, workflow):
    graph = small_graph(workflow)
    for host in (oldest, server):
        shutil.copy(host.comfyui / "input" / "example.png", host.input_dir)
    assert oldest.get("/system_stats")["system"]["comfyui_version"] == OLDEST_COMFYUI
    difference = np.abs(picture(oldest, graph) - picture(server, graph))
    assert difference.mean() < 1, "of 255 levels"


def test_the_client_makes_a_picture_from_a_reference(oldest, tmp_path):
    Image.linear_gradient("L").save(tmp_path / "reference.png")
    request = Request(
        prompt="a red circle on a blue background",
        aspect_ratio="1:1",
        megapixels=0.0625,
        num_inference_steps=15,
        num_images=2,
        seed=5,
        style_references=[str(tmp_path / "reference.png")],
    )
    with KreaClient(oldest.url) as client:
        assert client.server().comfyui == OLDEST_COMFYUI
        events = list(client.events(request, tmp_path, previews=True))
    kinds = [type(event) for event in events if not isinstance(event, Preview)]
    assert kinds == [Queued, Started, *[Progress] * 15, Finished] and len(events) > len(kinds)
    result = events[-1].result
    assert len(result.paths) == 2 and {picture.verdict.outcome for picture in result.pictures} == {"pass"}
    assert result.prompt_verdict.decision == "pass" and 0 < result.timings.ran < result.timings.total
