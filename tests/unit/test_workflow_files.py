"""The shipped graphs as files: whole, tidy, named after the real model files, and set to the model's recipe."""

import itertools
import re

import pytest
from PIL import Image

from dev.environment import ROOT
from dev.workflows import API, WORKFLOWS, read
from krea import recipe
from krea.model_file import catalogue

GRAPHS = sorted(WORKFLOWS.glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
MODELS = (catalogue.KREA_FP8, catalogue.CLIP_L, catalogue.T5_FP8_SCALED, catalogue.AE)
STYLE_MODELS = (catalogue.SIGLIP, catalogue.REDUX)
LOADERS = {"FluxKreaModelLoader": MODELS, "FluxKreaStyleModelLoader": STYLE_MODELS}
TITLE_HEIGHT = 30  # px that a node's title adds above its position

graphs = pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
graphs_and_blueprints = pytest.mark.parametrize("path", GRAPHS + BLUEPRINTS, ids=lambda path: path.stem)


def levels(graph):
    """The graph itself and every subgraph in it, each with its links as (id, from, slot, to, slot, type)."""
    yield graph["nodes"], [tuple(link) for link in graph["links"]]
    for inner in graph.get("definitions", {}).get("subgraphs", []):
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        yield inner["nodes"], [tuple(link[key] for key in keys) for link in inner["links"]]


def node_of(nodes, kind):
    (node,) = (node for node in nodes if node["type"] == kind)
    return node


def notes(graph):
    return "\n".join(node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote")


def test_each_graph_has_its_api_copy_and_its_thumbnail():
    names = [path.stem for path in GRAPHS]
    assert {"text_to_image", "image_to_image", "style_reference", "style_mix", "image_prompt"} <= set(names)
    assert sorted(path.stem for path in API.iterdir()) == names
    assert sorted(path.stem for path in WORKFLOWS.glob("*.jpg")) == names


@graphs
def test_thumbnail_is_a_small_square(path):
    thumbnail = path.with_suffix(".jpg")
    with Image.open(thumbnail) as picture:
        assert picture.size == (400, 400)
    assert thumbnail.stat().st_size < 40_000


@graphs_and_blueprints
def test_links_join_slots_of_their_type(path):
    for nodes, links in levels(read(path)):
        by_id = {node["id"]: node for node in nodes}
        for link, origin, origin_slot, target, target_slot, kind in links:
            if origin in by_id:  # else the inlet of a subgraph
                output = by_id[origin]["outputs"][origin_slot]
                assert link in output["links"] and output["type"] == kind
            if target in by_id:
                entry = by_id[target]["inputs"][target_slot]
                assert entry["link"] == link and entry["type"] == kind
        ends = {link[0] for link in links}
        for node in nodes:
            assert {entry["link"] for entry in node.get("inputs", [])} - {None} <= ends
            assert set(itertools.chain(*(output["links"] or [] for output in node.get("outputs", [])))) <= ends


@graphs_and_blueprints
def test_nodes_say_which_pack_they_come_from(path):
    for nodes, _ in levels(read(path)):
        for node in nodes:
            if node["type"] == "MarkdownNote":
                continue
            core = not node["type"].startswith("FluxKrea") and len(node["type"]) < 36  # a subgraph's type is a UUID
            assert node["properties"]["cnr_id"] == ("comfy-core" if core else "flux-krea")
            assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])


@graphs_and_blueprints
def test_loader_names_the_published_files(path):
    (nodes, _) = list(levels(read(path)))[-1]
    node_of(nodes, "FluxKreaModelLoader")
    keys = ("name", "url", "directory", "hash", "hash_type")
    for loader in (node for node in nodes if node["type"] in LOADERS):
        files = LOADERS[loader["type"]]
        assert loader["widgets_values"][: len(files)] == [file.name for file in files]
        expected = [
            dict(zip(keys, (file.name, file.url, file.folder, file.sha256, "SHA256"), strict=True)) for file in files
        ]
        assert loader["properties"]["models"] == expected


@graphs
def test_note_links_the_files_and_the_licence(path):
    graph = read(path)
    text = notes(graph)
    for file in (file for node in graph["nodes"] for file in LOADERS.get(node["type"], ())):
        assert f"[{file.name}]({file.url}) | {file.folder} | " in text
        assert not file.size or f"{file.folder} | {catalogue.readable_size(file.size)} |" in text
    assert f"**guidance {recipe.GUIDANCE.default}**, **{recipe.STEPS.default} steps**" in text
    assert "Non-Commercial License](https://huggingface.co/black-forest-labs/FLUX.1-Krea-dev/" in text
    assert "content filters or manual review" in text


@graphs
def test_settings_are_the_recipe(path):
    nodes = {node["class_type"]: node["inputs"] for node in read(API / path.name).values()}
    sampler = nodes["FluxKreaSampler"]
    for name, setting in (("guidance", recipe.GUIDANCE), ("steps", recipe.STEPS), ("true_cfg", recipe.TRUE_CFG)):
        assert sampler[name] == setting.default
    assert sampler["sampler_name"] == recipe.SAMPLER
    assert nodes["FluxKreaPrompt"]["texture_enhancement"] is (path.stem != "image_prompt")  # that has no words
    size = nodes["FluxKreaAspectRatioLatent"]
    assert (size["aspect_ratio"], size["resolution"]) == ("3:2", "1K")
    assert nodes["FluxKreaSaveImage"]["filename_prefix"] == f"flux_krea/{path.stem}"


@graphs
def test_every_graph_ends_in_the_gate(path):
    graph = read(API / path.name)
    [saving] = [node["inputs"] for node in graph.values() if node["class_type"] == "FluxKreaSaveImage"]
    assert graph[saving["filter"][0]]["class_type"] in ("FluxKreaContentFilterLoader", "FluxKreaPromptFilter")
    assert saving["disclosure"] == ("edited by AI" if path.stem == "image_to_image" else "made by AI")
    assert "SaveImage" not in [node["class_type"] for node in graph.values()]


@graphs
def test_no_node_hides_another_and_each_has_a_group(path):
    graph = read(path)
    boxes = []
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes.append((node["type"], x, y - TITLE_HEIGHT, x + width, y + height))
    for (one, *a), (other, *b) in itertools.combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{one} and {other} overlap"
    for kind, left, top, right, bottom in boxes:
        groups = [
            group["title"]
            for group in graph["groups"]
            if group["bounding"][0] <= left
            and group["bounding"][1] <= top
            and right <= group["bounding"][0] + group["bounding"][2]
            and bottom <= group["bounding"][1] + group["bounding"][3]
        ]
        assert len(groups) == (kind != "MarkdownNote"), f"{kind} lies in {groups}"


@graphs
def test_links_run_from_left_to_right(path):
    graph = read(path)
    by_id = {node["id"]: node for node in graph["nodes"]}
    for _, origin, _, target, _, kind in graph["links"]:
        start, end = by_id[origin], by_id[target]
        below = start["pos"][1] + start["size"][1] <= end["pos"][1]
        assert start["pos"][0] < end["pos"][0] or below, f"{start['type']} -> {end['type']} ({kind})"


def test_blueprint_offers_the_prompt_the_size_the_seed_and_the_files():
    (path,) = BLUEPRINTS
    graph = read(path)
    (node,) = graph["nodes"]
    (definition,) = graph["definitions"]["subgraphs"]
    assert definition["name"] == path.stem
    files = ["diffusion_model", "text_encoder_1", "text_encoder_2", "vae"]
    assert [entry["name"] for entry in node["inputs"]] == ["prompt", "aspect_ratio", "resolution", "seed", *files]
    assert node["widgets_values"][4:] == [file.name for file in MODELS]
    assert [output["type"] for output in node["outputs"]] == ["IMAGE"]
    assert "FLUX.1 Krea [dev]" in definition["description"]
