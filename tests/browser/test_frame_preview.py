"""Krea Aspect-Ratio Latent on the page: the frame and its size, before and after a run, in both node renderers."""

import pytest
from PIL import Image

from dev.environment import ROOT
from dev.workflows import read

FRAME = ".flux-krea-frame"


@pytest.fixture
def canvas(renderer, page):
    """A page with one Krea Aspect-Ratio Latent, which is `node` there."""
    page.evaluate("""() => {
        app.graph.clear();
        window.node = LiteGraph.createNode("FluxKreaAspectRatioLatent");
        node.pos = [400, 150];
        app.graph.add(node);
        app.canvas.ds.scale = 1;
        app.canvas.ds.offset = [0, 0];
        app.canvas.setDirty(true, true);
    }""")
    page.wait_for_selector(FRAME)
    assert page.locator(".lg-node").count() == (renderer == "vue")
    return page


def choose(page, name, value):
    """Changes a widget of the node as both renderers do: its value, then its callback."""
    page.evaluate(
        """([name, value]) => {
            const widget = node.widgets.find((widget) => widget.name === name);
            widget.value = value;
            widget.callback(value);
        }""",
        [name, value],
    )


def expect_caption(page, *parts):
    contains = "([selector, parts]) => parts.every(p => document.querySelector(selector)?.textContent.includes(p))"
    page.wait_for_function(contains, arg=[f"{FRAME}-caption", parts], timeout=60_000)


def expect_drawn(page, ratio):
    """The frame on the screen has this ratio (width / height) and lies within its widget."""
    outline = page.locator(f"{FRAME}-outline").bounding_box()
    widget = page.locator(FRAME).bounding_box()
    assert outline["width"] / outline["height"] == pytest.approx(ratio, rel=0.03)
    for start, length in (("x", "width"), ("y", "height")):
        assert widget[start] <= outline[start]
        assert outline[start] + outline[length] <= widget[start] + widget[length]


def test_frame_follows_the_settings_before_anything_runs(canvas):
    expect_caption(canvas, "1872 × 1248 px", "3:2", "2.23 MP")
    expect_drawn(canvas, 3 / 2)

    choose(canvas, "aspect_ratio", "2.35:1")
    expect_caption(canvas, "2368 × 1008 px")
    expect_drawn(canvas, 2.35)

    choose(canvas, "swap_sides", True)
    expect_caption(canvas, "1008 × 2368 px")
    expect_drawn(canvas, 1 / 2.35)

    choose(canvas, "resolution", "4K")
    expect_caption(canvas, "672 × 1584 px", "2688 × 6336 px", "4×")

    choose(canvas, "swap_sides", False)
    choose(canvas, "aspect_ratio", "custom")
    choose(canvas, "resolution", "custom")
    choose(canvas, "custom_megapixels", 0.5)
    choose(canvas, "custom_ratio", "3:2")
    expect_caption(canvas, "880 × 592 px", "0.50 MP")

    choose(canvas, "custom_ratio", "wide")
    expect_caption(canvas, "'wide'", "21:9")
    assert not canvas.locator(f"{FRAME}-outline").is_visible()
    assert [error for error in canvas.console_errors if "flux-krea" in error or "flux_krea" in error] == []


def test_linked_picture_is_said_in_words_and_shown_after_the_run(canvas, renderer, server):
    # Two pictures, so that the second run is not answered from ComfyUI's cache.
    picture, shown = {"litegraph": ((160, 90), "1360 × 768 px"), "vue": ((90, 160), "768 × 1360 px")}[renderer]
    Image.new("RGB", picture).save(server.input_dir / f"{renderer}.png")
    link = """(name) => {
        const image = LiteGraph.createNode("LoadImage");
        app.graph.add(image);
        const file = image.widgets.find((widget) => widget.name === "image");
        file.options.values.push(name);
        file.value = name;
        image.connect(0, node, "picture");
        const preview = LiteGraph.createNode("PreviewAny");
        app.graph.add(preview);
        node.connect(1, preview, 0);
    }"""
    canvas.evaluate(link, f"{renderer}.png")
    choose(canvas, "resolution", "1K")
    expect_caption(canvas, "linked picture")
    canvas.evaluate("app.queuePrompt(0)")
    expect_caption(canvas, shown)


@pytest.mark.parametrize("renderer", ["litegraph"], indirect=True)
def test_chinese_user_reads_chinese_sentences(chinese, canvas):
    canvas.evaluate("""() => {
        const image = LiteGraph.createNode("LoadImage");
        app.graph.add(image);
        image.connect(0, node, "picture");
    }""")
    sentences = read(ROOT / "locales" / "zh" / "main.json")["fluxKrea"]["framePreview"]
    expect_caption(canvas, sentences["shapeIsLinked"])


def test_frame_is_no_input_of_the_node_and_no_value_of_the_workflow(canvas):
    choose(canvas, "resolution", "1K")
    saved = canvas.evaluate("app.graphToPrompt()")
    assert saved["workflow"]["nodes"][0]["widgets_values"] == ["3:2", "1K", False, "21:9", 1, 1]
    (node,) = saved["output"].values()
    sent = ["aspect_ratio", "resolution", "swap_sides", "custom_ratio", "custom_megapixels", "batch_size"]
    assert list(node["inputs"]) == sent

    workflow = saved["workflow"]
    workflow["nodes"][0]["widgets_values"][0] = "9:16"
    canvas.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    expect_caption(canvas, "768 × 1360 px")


@pytest.mark.parametrize("renderer", ["vue"], indirect=True)
def test_a_click_on_the_page_changes_the_frame(canvas):
    """LiteGraph paints its widgets: only the other renderer has elements to click."""
    expect_caption(canvas, "1872 × 1248 px")
    canvas.locator(".lg-node").get_by_role("switch").click()
    expect_caption(canvas, "1248 × 1872 px")
