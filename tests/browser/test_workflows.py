"""The shipped graphs and the blueprint in ComfyUI's own frontend: opened, converted, and run from the page."""

import io
import json
import shutil

import pytest
from PIL import Image

from dev.client import images_of
from dev.environment import ROOT
from dev.workflows import API, WORKFLOWS, convert, read, saved
from krea.model_file import catalogue
from tests.browser import frontend

GRAPHS = sorted(WORKFLOWS.glob("*.json"))
FILES = (catalogue.KREA_FP8, catalogue.CLIP_L, catalogue.T5_FP8_SCALED, catalogue.AE)
STYLE_FILES = (catalogue.SIGLIP, catalogue.REDUX)

graphs = pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def example(server):
    """The picture that every ComfyUI has in its input folder; the test server's own folder begins empty."""
    shutil.copy(server.comfyui / "input" / "example.png", server.input_dir)


@graphs
def test_opening_and_saving_changes_nothing(page, path):
    """So no node is missing, no link is broken, and no widget takes another one's value."""
    graph = read(path)
    frontend.open_graph(page, graph)
    assert saved(page) == graph
    kinds = {node["type"] for node in graph["nodes"]}
    assert kinds <= set(page.evaluate("() => Object.keys(LiteGraph.registered_node_types)"))
    assert frontend.our_errors(page) == []


@graphs
def test_api_copy_is_what_the_frontend_sends(page, path):
    fresh = json.dumps(convert(page, read(path)), indent=2, ensure_ascii=False)
    committed = (API / path.name).read_text(encoding="utf-8")
    assert fresh + "\n" == committed, "run `python3 dev workflows` to make the API copies anew"


@graphs
def test_runs_from_the_page(renderer, page, server, path):
    frontend.open_graph(page, read(path))
    frontend.use_small_model(page)
    images = images_of(frontend.run(page, server))
    assert len(images) == (4 if path.stem == "moderated_batch" else 1)
    for image in images:
        assert Image.open(io.BytesIO(server.view(image))).size == (256, 256)
        assert image["subfolder"] == "flux_krea" and image["filename"].startswith(path.stem)

    (node,) = (node for node in read(path)["nodes"] if node["type"] == "FluxKreaSaveImage")
    shown = "(id) => app.graph.getNodeById(id).imgs?.[0]?.naturalWidth === 256"
    if renderer == "vue":
        shown = "(id) => document.querySelector(`[data-node-id='${id}'] img`)?.naturalWidth === 256"
    page.wait_for_function(shown, arg=node["id"], timeout=30_000)
    page.wait_for_function("(name) => document.body.innerText.includes(name)", arg="CLIP-L", timeout=30_000)
    frontend.screenshot(page, f"{path.stem}_{renderer}")
    assert frontend.our_errors(page) == []


@graphs
def test_missing_models_are_named_with_folder_size_and_download(browser, server, path):
    """Hugging Face is played by the test: it answers the frontend's question for each file's size."""
    server.request("/api/settings", {"Comfy.TutorialCompleted": True})
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, bypass_csp=True)
    context.route("https://huggingface.co/**", _answer_with_size)
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_function("window.app?.vueAppReady && !window.app.extensionManager.spinner", timeout=60_000)
    frontend.open_graph(page, read(path))
    page.get_by_text("View details").click()
    rows = page.get_by_test_id("missing-model-importable-rows")
    rows.get_by_text(_shown_size(FILES[0].size)).wait_for()
    frontend.screenshot(page, f"{path.stem}_missing_models")
    lines = [line.strip() for line in rows.inner_text().splitlines() if line.strip()]
    files = FILES + (STYLE_FILES if "FluxKreaStyleModelLoader" in json.dumps(read(path)) else ())
    expected = {(file.name, f"{file.folder} · {_shown_size(_size(file))}", "Download") for file in files}
    assert {tuple(lines[index : index + 3]) for index in range(0, len(lines), 3)} == expected
    context.close()


def _shown_size(size):
    """Bytes as the frontend writes them, with 1024 for a step and at most two decimals."""
    unit = min(3, (size.bit_length() - 1) // 10)
    return f"{round(size / 1024**unit, 2):g} {('B', 'KB', 'MB', 'GB')[unit]}"


def _size(file):
    return file.size or 129_000_000  # of some files the catalogue knows the hash alone


def _answer_with_size(route):
    file = next(file for file in FILES + STYLE_FILES if file.url == route.request.url)
    headers = {"Content-Length": str(_size(file)), "Access-Control-Allow-Origin": "*"}
    route.fulfill(status=200, headers={**headers, "Access-Control-Expose-Headers": "Content-Length"})


def test_browse_templates_shows_ours_and_opens_them(page):
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("Flux Krea", exact=True).first.click()
    for path in GRAPHS:
        page.get_by_text(path.stem, exact=True).wait_for()
    thumbnails = "(count) => [...document.images].filter((image) => image.naturalWidth === 400).length === count"
    page.wait_for_function(thumbnails, arg=len(GRAPHS))
    frontend.screenshot(page, "browse_templates")
    page.get_by_text("text_to_image", exact=True).click()
    page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'FluxKreaSampler')")
    assert saved(page)["nodes"] == read(WORKFLOWS / "text_to_image.json")["nodes"]


def test_blueprint_is_found_added_and_run(page, server):
    (path,) = (ROOT / "subgraphs").glob("*.json")
    page.evaluate("() => app.graph.clear()")
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.get_by_role("combobox", name="Add a node...").fill(path.stem)
    page.get_by_text("Blueprint", exact=True).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.graph.nodes.length === 1")
    page.wait_for_timeout(500)  # the search window closes
    page.mouse.move(500, 300)
    page.mouse.click(500, 310)  # puts the node down, which followed the pointer
    page.wait_for_function("() => !app.graph.nodes[0].flags.ghost")
    page.evaluate("""() => {
        const [blueprint] = app.graph.nodes;
        const save = LiteGraph.createNode("SaveImage");
        save.pos = [blueprint.pos[0] + 500, blueprint.pos[1]];
        app.graph.add(save);
        blueprint.connect(0, save, 0);
    }""")
    sent = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    sent = {node["class_type"]: _widget_values(node) for node in sent.values()}
    graph = {node["class_type"]: _widget_values(node) for node in read(API / "text_to_image.json").values()}
    del sent["SaveImage"], graph["FluxKreaSaveImage"], graph["FluxKreaContentFilterLoader"]
    assert sent == graph

    frontend.use_small_model(page)
    (image,) = images_of(frontend.run(page, server))
    assert Image.open(io.BytesIO(server.view(image))).size == (256, 256)
    frontend.screenshot(page, "blueprint")
    assert frontend.our_errors(page) == []


def _widget_values(node):
    return {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}


def test_chinese_user_reads_chinese(chinese, page):
    frontend.open_graph(page, read(WORKFLOWS / "text_to_image.json"))
    words = read(ROOT / "locales" / "zh" / "nodeDefs.json")
    others = words.keys() - {node["type"] for node in read(WORKFLOWS / "text_to_image.json")["nodes"]}
    page.evaluate("(kinds) => kinds.forEach((kind) => app.graph.add(LiteGraph.createNode(kind)))", sorted(others))
    shown = page.evaluate("""() => Object.fromEntries(app.graph.nodes.map((node) => [node.type, {
        title: node.title,
        labels: Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.label])),
        outputs: node.outputs.map((output) => output.localized_name),
    }]))""")
    for kind, expected in words.items():
        assert shown[kind]["title"] == expected["display_name"]
        assert shown[kind]["outputs"] == [output["name"] for output in expected["outputs"].values()]
        for name, label in shown[kind]["labels"].items():
            assert name not in expected["inputs"] or label == expected["inputs"][name]["name"]
    assert frontend.our_errors(page) == []


def test_help_page_opens_on_the_page(page):
    frontend.open_graph(page, read(WORKFLOWS / "text_to_image.json"))
    page.evaluate(
        "() => app.canvas.selectNode(app.graph.nodes.find((node) => node.type === 'FluxKreaAspectRatioLatent'))"
    )
    page.get_by_test_id("info-button").click()
    page.get_by_role("heading", name="Sizes").wait_for()
    frontend.screenshot(page, "help_page")
