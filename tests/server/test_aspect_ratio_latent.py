"""Krea Aspect-Ratio Latent in a real ComfyUI: the latent of each size, and the frame that the page asks for."""

import urllib.parse

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dev.client import PromptRejected, RunFailed

NODE_ID = "FluxKreaAspectRatioLatent"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def sized(server):
    """Runs the node with some inputs; its latent [B, 16, h, w], width, height and upscale factor."""

    def run(more_nodes=None, **inputs):
        shown = {f"{i}": node("PreviewAny", source=["size", i]) for i in (1, 2, 3)}
        save = node("SaveLatent", samples=["size", 0], filename_prefix="size")
        graph = {"size": node(NODE_ID, **inputs), "save": save, **shown, **(more_nodes or {})}
        outputs = server.run(graph)["outputs"]
        (file,) = outputs["save"]["latents"]
        latent = load_file(server.output_dir / file["subfolder"] / file["filename"])["latent_tensor"]
        return latent, *(int(outputs[i]["text"][0]) for i in shown)

    return run


def test_two_inputs_are_enough(sized):
    latent, *sizes = sized(aspect_ratio="3:2", resolution="1K")
    assert sizes == [1248, 832, 1]
    assert latent.shape == (1, 16, 832 // 8, 1248 // 8)
    assert not latent.any()


def test_4k_is_the_1k_latent_and_a_factor(sized):
    latent, *sizes = sized(aspect_ratio="2:3", resolution="4K")
    assert sizes == [832, 1248, 4]
    assert latent.shape == (1, 16, 156, 104)


def test_batch_and_custom_area(sized):
    latent, *sizes = sized(aspect_ratio="1:1", resolution="custom", custom_megapixels=0.0625, batch_size=4)
    assert sizes == [256, 256, 1]
    assert latent.shape == (4, 16, 32, 32)


def test_picture_gives_the_shape(sized, server):
    Image.new("RGB", (160, 90)).save(server.input_dir / "wide.png")
    picture = {"picture": node("LoadImage", image="wide.png")}
    inputs = {"aspect_ratio": "1:1", "resolution": "1K", "picture": ["picture", 0]}
    assert sized(picture, **inputs)[1:] == (1360, 768, 1)
    assert sized(picture, swap_sides=True, **inputs)[1:] == (768, 1360, 1)


def test_latent_is_the_one_that_core_makes(sized, server):
    latent, width, height, _ = sized(aspect_ratio="4:5", resolution="custom", custom_megapixels=0.1, batch_size=2)
    empty = node("EmptySD3LatentImage", width=width, height=height, batch_size=2)
    graph = {"empty": empty, "save": node("SaveLatent", samples=["empty", 0], filename_prefix="core")}
    (file,) = server.run(graph)["outputs"]["save"]["latents"]
    core = load_file(server.output_dir / file["subfolder"] / file["filename"])["latent_tensor"]
    assert latent.dtype == core.dtype
    assert torch.equal(latent, core)


@pytest.mark.parametrize(
    "wrong",
    [
        {"aspect_ratio": "7:5"},
        {"resolution": "2K"},
        {"batch_size": 5},
        {"batch_size": 0},
        {"resolution": "custom", "custom_megapixels": 17.0},
    ],
)
def test_value_outside_its_range_is_refused_before_anything_runs(sized, wrong):
    with pytest.raises(PromptRejected, match=next(reversed(wrong))):
        sized(**{"aspect_ratio": "3:2", "resolution": "1K", **wrong})


def test_unreadable_ratio_is_told_what_to_write(sized):
    with pytest.raises(RunFailed, match=r"custom ratio is 'wide'.*21:9"):
        sized(aspect_ratio="custom", resolution="1K", custom_ratio="wide")


def asked(server, **settings):
    return server.get("/api/flux_krea/frame?" + urllib.parse.urlencode(settings))


def test_page_gets_the_frame_of_settings_that_have_not_run(server):
    frame = asked(server, aspect_ratio="3:2", resolution="4K", swap_sides="true")
    assert (frame["width"], frame["height"]) == (832, 1248)
    for part in ("832 × 1248 px", "2:3", "3328 × 4992 px"):
        assert part in frame["caption"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"aspect_ratio": "custom", "custom_ratio": "wide"}, "'wide'"),
        ({"aspect_ratio": "<b>"}, "'<b>'"),
        ({"resolution": "custom", "custom_megapixels": "many"}, "'many'"),
    ],
)
def test_page_gets_the_reason_why_there_is_no_frame(server, wrong, told):
    answer = asked(server, **wrong)
    assert list(answer) == ["error"]
    assert told in answer["error"]


def test_every_input_says_what_it_does(server):
    inputs = server.object_info()[NODE_ID]["input"]
    for name, (_, options) in {**inputs["required"], **inputs["optional"]}.items():
        assert len(options.get("tooltip", "")) > 20, name
