"""The graph of a request: the wiring and the values of the shipped workflows."""

import json

import pytest

from dev.environment import ROOT
from krea.model_file.catalogue import FILES
from krea_client import Request
from krea_client.graph import SAVE, build, slots

MODELS = {slot: files[0].name for slot, files in FILES.items()}
PLAIN = {"content_filter": "off", "disclosure": "none"}


def built(**values):
    request = Request(**{"prompt": "x", "seed": 7} | values)
    pictures = {image: f"flux_krea/{image}" for image in request.images}
    return build(request, {slot: MODELS[slot] for slot in slots(request)}, pictures, "flux_krea/job")


def shipped(name):
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def is_link(value):
    return isinstance(value, list)


def assert_alike(ours, link, theirs, their_link, but=()):
    """The nodes behind two links are the same, and so is all that is before them."""
    assert link[1] == their_link[1]
    mine, other = ours[link[0]], theirs[their_link[0]]
    assert mine["class_type"] == other["class_type"]
    links = {key for key, value in mine["inputs"].items() if is_link(value)}
    assert links == {key for key, value in other["inputs"].items() if is_link(value)}, mine["class_type"]
    for key, value in mine["inputs"].items():
        if key in links:
            assert_alike(ours, value, theirs, other["inputs"][key], but)
        elif key not in but:
            assert value == other["inputs"][key], (mine["class_type"], key)


def saved(graph):
    """The link to what the graph saves."""
    [save] = (node for node in graph.values() if node["class_type"] in ("SaveImage", "FluxKreaSaveImage"))
    return save["inputs"]["images"]


def test_a_default_request_is_the_text_to_image_workflow():
    workflow = shipped("text_to_image")
    asked = {"prompt": workflow["2"]["inputs"]["prompt"], "resolution": "1K", "seed": 2026}
    plain = built(**asked, **PLAIN)
    assert_alike(plain, saved(plain), workflow, saved(workflow))
    assert plain[SAVE]["class_type"] == "SaveImage"
    graph = built(**asked)
    kinds = {node["class_type"] for node in graph.values()}
    assert kinds == {node["class_type"] for node in workflow.values()} | {"FluxKreaPromptFilter"}
    [ending] = (node["inputs"] for node in workflow.values() if node["class_type"] == "FluxKreaSaveImage")
    for name in ("file_format", "disclosure"):
        assert graph[SAVE]["inputs"][name] == ending[name]


def test_three_references_are_the_style_mix_workflow():
    workflow = shipped("style_mix")
    references = ["a.png@1.0", "b.png@0.7", "c.png@0.4"]
    graph = built(
        prompt=workflow["2"]["inputs"]["prompt"], resolution="1K", seed=2026, style_references=references, **PLAIN
    )
    assert_alike(graph, saved(graph), workflow, saved(workflow), but=("image", "strength"))
    pictures = [graph[graph["style"]["inputs"][f"pictures.picture_{n}"][0]]["inputs"]["image"] for n in (1, 2, 3)]
    assert pictures == ["flux_krea/a.png", "flux_krea/b.png", "flux_krea/c.png"]


def test_the_filter_reads_the_prompt_first_and_judges_at_the_end():
    graph = built(prompt="a wall", negative_prompt="graffiti")
    words = graph["prompt_filter"]["inputs"]
    assert (words["prompt"], words["negative_prompt"]) == ("a wall", "graffiti")
    read = graph["prompt"]["inputs"]
    assert (read["prompt"], read["negative_prompt"]) == (["prompt_filter", 0], ["prompt_filter", 1])
    assert graph["save"]["class_type"] == "FluxKreaSaveImage" and graph["save"]["inputs"]["filter"] == [
        "prompt_filter",
        2,
    ]
    plain = built(prompt="a wall", negative_prompt="graffiti", **PLAIN)
    assert_alike(
        {**graph, "prompt": plain["prompt"]}, saved(graph), plain, saved(plain)
    )  # the filter changes nothing in between


def test_review_asks_no_judge_so_that_a_person_decides():
    assert built(content_filter="review")["filter"]["inputs"] == {"open_nsfw": False, "word_lists": False}
    assert built()["filter"]["inputs"] == {}


@pytest.mark.parametrize("weight, strength", [(0.1, 0.0714), (0.7, 0.5), (1.0, 0.7143)])
def test_the_greatest_weight_sets_how_hard_the_references_pull(weight, strength):
    inputs = built(style_references=[f"a.png@{weight}", "b.png@0.1"])["style"]["inputs"]
    assert inputs["strength"] == strength and (inputs["weight_1"], inputs["weight_2"]) == (weight, 0.1)


def test_an_image_prompt_follows_the_style():
    graph = built(prompt="", image_prompt="face.png", style_references=["a.png"])
    node = graph["image_prompt"]["inputs"]
    assert node["use_as"] == "image prompt" and node["model"] == ["style", 0] and node["conditioning"] == ["style", 1]
    assert graph["sampler"]["inputs"]["model"] == ["image_prompt", 0]
    assert graph["prompt"]["inputs"]["texture_enhancement"] is False, "no words, nothing to enhance"


def test_4k_is_enlarged_after_painting():
    graph = built(resolution="4K")
    assert saved(graph) == ["upscale", 0] and graph["upscale"]["inputs"]["scale_by"] == 4
    assert "upscale" not in built(resolution="1.5K")


def test_every_setting_arrives_at_its_node():
    graph = built(
        num_inference_steps=20,
        guidance_scale=6,
        true_cfg_scale=2,
        num_images=3,
        aspect_ratio="9:16",
        megapixels=0.5,
        output_format="webp",
        disclosure="edited by AI",
    )
    sampler, latent, save = (graph[name]["inputs"] for name in ("sampler", "latent", "save"))
    assert [sampler[key] for key in ("seed", "steps", "guidance", "true_cfg")] == [7, 20, 6, 2]
    assert latent == {"aspect_ratio": "9:16", "resolution": "custom", "custom_megapixels": 0.5, "batch_size": 3}
    assert (save["file_format"], save["disclosure"], save["filename_prefix"]) == (
        "webp",
        "edited by AI",
        "flux_krea/job",
    )
