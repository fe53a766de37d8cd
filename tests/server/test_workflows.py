"""What ComfyUI serves of the pack, and every shipped workflow run over HTTP with the small model."""

import io
import json
import random
import urllib.error
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dev import small_model
from dev.client import images_of
from dev.environment import ROOT
from dev.host import PACK_FOLDER
from dev.mini.evaluate import node_inputs
from dev.mini.evaluate_style import referenced
from dev.mini.judge import judge, view
from dev.mini.pictures import COLOURS, SQUARE, draw, single_scene
from dev.mini.style_judge import palette
from dev.painters import IMAGE_PROMPTS, run
from dev.painters import reference as reference_picture
from dev.workflows import API, ENGLISH, WORKFLOWS, english, read
from krea import disclosure
from krea.aspect_ratio import frame

NODES = sorted(read(ENGLISH))
NAMES = sorted(path.stem for path in API.iterdir())


@pytest.fixture
def drawing(server):
    """A red circle left of the middle on white, 384x256 px, in ComfyUI's input folder; gives its name."""
    picture = Image.new("RGB", (384, 256), COLOURS["white"])
    ImageDraw.Draw(picture).ellipse((60, 68, 180, 188), fill=COLOURS["red"])
    picture.save(server.input_dir / "drawing.png")
    return "drawing.png"


def test_templates_are_our_graphs_and_nothing_else(server):
    assert sorted(server.get("/workflow_templates")[PACK_FOLDER]) == NAMES
    for name in NAMES:
        address = f"/api/workflow_templates/{PACK_FOLDER}/{name}"
        assert server.get(f"{address}.json") == read(WORKFLOWS / f"{name}.json")
        assert server.request(f"{address}.jpg") == (WORKFLOWS / f"{name}.jpg").read_bytes()


def test_blueprint_is_served(server):
    (path,) = (ROOT / "subgraphs").glob("*.json")
    entries = server.get("/global_subgraphs").items()
    (identity,) = [key for key, entry in entries if entry["info"]["node_pack"] == f"custom_nodes.{PACK_FOLDER}"]
    entry = server.get(f"/global_subgraphs/{identity}")
    assert entry["name"] == path.stem
    assert json.loads(entry["data"]) == read(path)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_translations_are_served(server, language):
    served = server.get("/i18n")[language]
    assert {name: served["nodeDefs"][name] for name in NODES} == read(ROOT / "locales" / language / "nodeDefs.json")
    assert served["nodeCategories"]["Krea"]


def test_english_is_what_the_nodes_say(server):
    assert english(server.object_info()) == read(ENGLISH)


@pytest.mark.parametrize("node", NODES)
def test_help_page_is_served(server, node):
    page = server.request(f"/extensions/{PACK_FOLDER}/docs/{quote(node)}.md").decode()
    words = read(ENGLISH)[node]
    assert page.startswith(f"# {words['display_name']}\n")
    for entry in words["inputs"].values():
        assert entry["name"] in page, f"{node}.md does not explain {entry['name']}"


def test_no_page_without_a_node(server):
    assert sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md")) == NODES
    with pytest.raises(urllib.error.HTTPError):
        server.request(f"/extensions/{PACK_FOLDER}/docs/NoSuchNode.md")


def test_every_workflow_has_its_run_here():
    tested = ["image_prompt", "image_to_image", "moderated_batch", "style_mix", "style_reference", "text_to_image"]
    assert NAMES == tested, "give the new workflow a test that runs and judges it"


def test_text_to_image(server):
    prompt = "a red circle on a blue background"
    picture = run(server, "text_to_image", prompt=prompt, seed=1)
    assert picture.shape == (256, 256, 3)
    assert judge(picture, "blue", (("red", "circle"),)).all


def test_text_to_image_at_3_2(server):
    """As shipped but for the area: the ratio of the graph itself."""
    size = frame("3:2", "custom", custom_megapixels=0.0625).size
    prompt = "a yellow circle on a purple background"
    picture = run(server, "text_to_image", prompt=prompt, aspect_ratio="3:2", seed=1)
    assert picture.shape == (size.height, size.width, 3)
    assert judge(picture, "purple", (("yellow", "circle"),)).all


def test_image_to_image_keeps_less_of_the_drawing_the_higher_the_start_sigma(server, drawing):
    """From little noise the drawing comes back as it was, though the prompt names another colour."""
    size = frame("1:1", "custom", custom_megapixels=0.0625, picture=(384, 256)).size
    drawn = np.asarray(Image.open(server.input_dir / drawing).convert("RGB").resize(size), np.float64)
    changes = dict(prompt="a green circle on a white background", image=drawing, seed=1)
    pictures = [run(server, "image_to_image", start_sigma=sigma, **changes) for sigma in (0.05, 0.15, 0.3, 0.6)]
    pictures.append(run(server, "image_to_image", **changes))
    assert all(picture.shape == (size.height, size.width, 3) for picture in pictures)
    distances = [float(np.abs(picture - drawn).mean()) for picture in pictures]
    assert distances == sorted(distances) and distances[-1] > 2 * distances[0]
    for picture in pictures[:2]:
        (kept,) = view(picture).shapes
        assert (kept.colour, kept.kind) == ("red", "circle")
        assert kept.x == pytest.approx(120 / 384, abs=0.03)
    assert [shape.colour for shape in view(pictures[-1]).shapes] == ["green"]
    assert view(pictures[0]).background == view(pictures[-1]).background == "white"


PROMPT = "a green circle on a white background"


def test_style_reference_gives_the_palette_and_leaves_the_subject_to_the_prompt(server):
    look = reference_picture("white", "black", "square", tint=(66.0, 48.0, 140.0), palette=1.0)
    pictures = [
        referenced(server, "style_reference", [look], PROMPT, 3, strength=strength)
        for strength in (0.0, 0.5, 0.75, 1.0)
    ]
    assert [[shape.kind for shape in view(picture).shapes] for picture in pictures] == [["circle"]] * 4
    to_look = [float(np.linalg.norm(palette(picture) - palette(look))) for picture in pictures]
    assert to_look == sorted(to_look, reverse=True) and to_look[-1] < 0.7 * to_look[0]


@pytest.mark.parametrize(("wall", "colour", "kind"), IMAGE_PROMPTS)
def test_image_prompt_paints_what_a_picture_shows_without_a_word(server, wall, colour, kind):
    shown = draw(single_scene(SQUARE, wall, colour, kind, random.Random(3)))
    assert judge(referenced(server, "image_prompt", [shown], "", 1), wall, ((colour, kind),)).all


def test_style_mix_lies_between_its_references(server):
    """With all the weight on one of the pictures, its palette; with half on each, something between the two."""
    looks = [
        reference_picture("white", "black", "square", tint=tint, palette=1.0)
        for tint in ((30.0, 40.0, 160.0), (220.0, 120.0, 30.0))
    ]
    walls = []
    for first, second in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        weights = {"weight_1": first, "weight_2": second, "weight_3": 0.0, "strength": 1.0}
        pictures = [*looks, looks[0]]
        walls.append(palette(referenced(server, "style_mix", pictures, PROMPT, 3, **weights)))
    way = walls[2] - walls[0]
    assert np.linalg.norm(way) > 20
    assert 0.15 < (walls[1] - walls[0]) @ way / (way @ way) < 0.85


def test_moderated_batch_judges_each_of_its_four_pictures_and_marks_what_it_saves(server):
    graph = small_model.workflow("moderated_batch")
    node_inputs(graph, "FluxKreaPromptFilter")["prompt"] = "a red circle on a blue background"
    node_inputs(graph, "FluxKreaSampler")["seed"] = 1
    record = server.run(graph)
    files = [server.view(image) for image in images_of(record)]
    assert len(files) == len(set(files)) == 4
    for data in files:
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert judge(picture, "blue", (("red", "circle"),)).all
        assert disclosure.read(data).source_type == "trainedAlgorithmicMedia"


def test_moderated_batch_saves_nothing_where_every_picture_is_to_be_reviewed(server):
    graph = small_model.workflow("moderated_batch")
    node_inputs(graph, "FluxKreaPromptFilter")["prompt"] = "a red circle on a blue background"
    node_inputs(graph, "FluxKreaSampler")["seed"] = 1
    node_inputs(graph, "FluxKreaContentFilterLoader")["open_nsfw_review"] = 0.0
    for kind in ("FluxKreaContentFilter", "FluxKreaSaveImage"):
        node_inputs(graph, kind)["filename_prefix"] = "flux_krea/reviewed"
    assert images_of(server.run(graph)) == []
    waiting = [case for case in server.get("/flux_krea/review")["waiting"] if case["prefix"] == "flux_krea/reviewed"]
    assert len(waiting) == 4
