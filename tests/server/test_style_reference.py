"""Style references through a real ComfyUI's HTTP interface: loading, sockets that grow, refusals."""

import io

import numpy as np
import pytest
from PIL import Image

from dev import small_model
from dev.client import PromptRejected, RunFailed, images_of
from dev.host import link

NAMES = {"vision_encoder": "small_siglip.safetensors", "adapter": "small_redux.safetensors"}


@pytest.fixture(scope="module")
def files(server, style_files):
    """The small style model and a picture in ComfyUI's folders."""
    for folder, file in style_files:
        link(file, server.models_dir / folder / file.name)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(server.input_dir / "reference.png")


def graph(small_graph, pictures=1, loader=NAMES, **reference):
    """text_to_image with reference pictures between prompt and sampler."""
    graph = small_graph("text_to_image")
    ids = {node["class_type"]: name for name, node in graph.items()}
    sampler = graph[ids["FluxKreaSampler"]]["inputs"]
    graph["style"] = {"class_type": "FluxKreaStyleModelLoader", "inputs": dict(loader)}
    graph["picture"] = {"class_type": "LoadImage", "inputs": {"image": "reference.png"}}
    graph["reference"] = {
        "class_type": "FluxKreaStyleReference",
        "inputs": {
            "model": sampler["model"],
            "conditioning": sampler["positive"],
            "style_model": ["style", 0],
            **{f"pictures.picture_{number}": ["picture", 0] for number in range(1, pictures + 1)},
            **reference,
        },
    }
    sampler |= {"model": ["reference", 0], "positive": ["reference", 1], "seed": 1, "steps": 15}
    return graph


def picture(server, graph):
    (image,) = images_of(server.run(graph))
    return np.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"))


def refusal(server, graph) -> str:
    with pytest.raises((RunFailed, PromptRejected)) as error:
        server.run(graph)
    return str(error.value)


def test_references_change_the_picture(server, files, small_graph):
    without = picture(server, graph(small_graph, strength=0.0))
    one = picture(server, graph(small_graph, strength=0.8))
    three = picture(server, graph(small_graph, pictures=3, strength=0.8))
    assert without.shape == one.shape == three.shape == (256, 256, 3)
    assert not np.array_equal(without, one)
    # Three times the same picture is that picture, to rounding.
    assert np.abs(one.astype(int) - three).mean() < 1


def test_a_picture_is_required(server, files, small_graph):
    assert "picture_1" in refusal(server, graph(small_graph, pictures=0))


def test_a_fourth_picture_is_refused(server, files, small_graph):
    assert "at most 3 pictures" in refusal(server, graph(small_graph, pictures=4))


@pytest.mark.parametrize(
    "loader, message",
    [
        ({"vision_encoder": small_model.VAE}, "not in models/clip_vision"),
        ({"adapter": "missing.safetensors"}, "flux1-redux-dev.safetensors in models/style_models"),
        ({"vision_encoder": "a_redux.safetensors"}, "is FLUX.1 Redux, a style model, not the SigLIP vision encoder"),
        ({"adapter": "a_siglip.safetensors"}, "is a SigLIP vision encoder, not the FLUX.1 Redux"),
    ],
    ids=["in no folder", "missing", "adapter as encoder", "encoder as adapter"],
)
def test_a_wrong_file_is_named(server, files, style_files, small_graph, loader, message):
    (_, siglip), (_, redux) = style_files
    link(redux, server.models_dir / "clip_vision" / "a_redux.safetensors")
    link(siglip, server.models_dir / "style_models" / "a_siglip.safetensors")
    assert message in refusal(server, graph(small_graph, loader={**NAMES, **loader}))


def test_a_wrong_picture_is_named(server, files, small_graph):
    mask = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 90, "height": 60}}
    refused = graph(small_graph, picture_mask=["mask", 0]) | {"mask": mask}
    assert "The picture mask for picture_1 is empty" in refusal(server, refused)
