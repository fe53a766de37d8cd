"""The running ComfyUI has the pack in it, and the small model in its lists."""

import io

import pytest
from PIL import Image

from dev import small_model
from dev.client import PromptRejected, RunFailed, images_of

NODES = {
    *("FluxKreaModelLoader", "FluxKreaPrompt", "FluxKreaAspectRatioLatent", "FluxKreaSampler"),
    *("FluxKreaStyleModelLoader", "FluxKreaStyleReference"),
    *("FluxKreaContentFilterLoader", "FluxKreaPromptFilter", "FluxKreaContentFilter", "FluxKreaSaveImage"),
}


def flat_picture(width: int, height: int) -> dict:
    """A graph of ComfyUI's own nodes: a blue picture, saved."""
    inputs = {"width": width, "height": height, "batch_size": 1, "color": 0x0000FF}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "smoke"}},
    }


def test_pack_loads_without_a_warning(server):
    assert "IMPORT FAILED" not in server.log_text()
    assert {name for name in server.object_info() if name.startswith("FluxKrea")} == NODES


def test_small_model_is_offered(server):
    for folder, file in small_model.FILES:
        assert file.name in server.get(f"/models/{folder}")


def test_run_gives_a_picture(server):
    (image,) = images_of(server.run(flat_picture(64, 32)))
    picture = Image.open(io.BytesIO(server.view(image))).convert("RGB")
    assert picture.size == (64, 32)
    assert picture.getpixel((5, 5)) == (0, 0, 255)


def test_events_end_with_the_run(server):
    events = [event.type for event in server.events(flat_picture(48, 48))]
    assert events[-1] == "execution_success"
    assert "executed" in events


def test_refused_graph_names_the_node_and_the_input(server):
    with pytest.raises(PromptRejected, match=r"node 1 \(EmptyImage\).*width"):
        server.run(flat_picture(-1, 32))


def test_failed_run_carries_the_nodes_message(server):
    graph = flat_picture(64, 64)
    graph["2"]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(RunFailed, match="SaveImage"):
        server.run(graph)
