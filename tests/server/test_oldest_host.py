"""The pack on the oldest ComfyUI that pyproject.toml promises."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from dev import small_model
from dev.client import images_of
from dev.environment import OLDEST_COMFYUI, fetch_comfyui
from dev.host import ComfyHost


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    base = tmp_path_factory.mktemp("oldest")
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
