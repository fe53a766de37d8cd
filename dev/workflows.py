"""``python3 dev workflows``: brings up to date what follows from the shipped graphs and nodes.

- workflows/*.json: the graphs themselves as ComfyUI's own frontend saves them once it has opened them,
- workflows/api/*.json: the graphs as the frontend sends them to the server,
- workflows/*.jpg and docs/krea_mini.jpg: the thumbnails of Browse Templates and the README's picture, painted by
  krea-mini (only when asked for),
- locales/en/nodeDefs.json: the nodes' own words.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev import environment, small_model
from dev.client import Graph, images_of
from dev.environment import ROOT, say
from dev.host import ComfyHost

if TYPE_CHECKING:
    from PIL.Image import Image
    from playwright.sync_api import Page

WORKFLOWS = ROOT / "workflows"
API = WORKFLOWS / "api"
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"

SAVE = "() => JSON.stringify(app.graph.serialize())"
CONVERT = """async (graph) => {
    await app.loadGraphData(graph, true, true, null);
    return JSON.stringify((await app.graphToPrompt()).output);
}"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 dev workflows",
        description=__doc__.partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--thumbnails", action="store_true", help="paint the pictures anew, too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    environment.prepare(tests=True)  # the browser's driver is one of the test tools
    with tempfile.TemporaryDirectory() as base, ComfyHost(Path(base), small_model.FILES) as host:
        _write(ENGLISH, english(host.object_info()))
        with frontend(host.url) as page:
            for path in sorted(WORKFLOWS.glob("*.json")):
                _write(API / path.name, convert(page, read(path)))
                _write(path, saved(page))
        if options.thumbnails:
            for name, paint in THUMBNAILS.items():
                _save(paint(host), WORKFLOWS / f"{name}.jpg")
            _save(_readme_picture(host), README_PICTURE)
    return 0


def read(path: Path) -> dict[str, Any]:
    """The JSON in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"{path.relative_to(ROOT)}")


def _save(picture: "Image", path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    picture.save(path, quality=85, optimize=True)
    say(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")


@contextlib.contextmanager
def frontend(url: str) -> Iterator["Page"]:
    """The frontend of the ComfyUI at ``url``, in a headless Chromium and ready for work."""
    from playwright.sync_api import sync_playwright

    from dev.browser import chromium

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium())
        page = browser.new_page()
        page.goto(url)
        page.wait_for_function("window.app?.vueAppReady && !window.app.extensionManager.spinner", timeout=60_000)
        yield page
        browser.close()


def convert(page: "Page", graph: dict[str, Any]) -> Graph:
    """The API format of a UI-format graph, made by the frontend in ``page`` as its Run button makes it."""
    return json.loads(page.evaluate(CONVERT, graph))


def saved(page: "Page") -> dict[str, Any]:
    """The graph that is open in ``page``, as the frontend saves it."""
    return json.loads(page.evaluate(SAVE))


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """The pack's nodes in the words of their schemas, in the layout of ComfyUI's nodeDefs.json."""
    return {name: _words(info) for name, info in sorted(object_info.items()) if name.startswith("FluxKrea")}


def _words(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {}
    for name, (_, options) in {**info["input"]["required"], **info["input"].get("optional", {})}.items():
        inputs[name] = {"name": options.get("display_name", name), "tooltip": options["tooltip"]}
    outputs = {}
    for index, name in enumerate(info["output_name"]):
        tooltip = info["output_tooltips"][index]
        outputs[str(index)] = {"name": name, **({"tooltip": tooltip} if tooltip else {})}
    words = {"display_name": info["display_name"], "description": info["description"]}
    return {**words, "inputs": inputs, "outputs": outputs}


def _run(host: ComfyHost, workflow: str, **changes: Any) -> "Image":
    """The picture that a shipped workflow makes with krea-mini; ``changes`` are widget values, by name."""
    from PIL import Image

    graph = small_model.for_small_model(read(API / f"{workflow}.json"))
    for node in graph.values():
        inputs = node["inputs"]  # a list in it is a link
        inputs.update({name: new for name, new in changes.items() if not isinstance(inputs.get(name, []), list)})
    (image,) = images_of(host.run(graph))
    return Image.open(io.BytesIO(host.view(image))).convert("RGB")


def _text_to_image(host: ComfyHost) -> "Image":
    """Four pictures, two by two."""
    from PIL import Image

    prompts = (
        "a red circle on a blue background",
        "a yellow star on a purple background",
        "a green triangle to the left of an orange square on a white background",
        "a white circle above a black square on a red background",
    )
    sheet = Image.new("RGB", (400, 400), "white")
    for index, prompt in enumerate(prompts):
        picture = _run(host, "text_to_image", prompt=prompt, seed=1).resize((199, 199), Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % 2 * 201, index // 2 * 201))
    return sheet


def _image_to_image(host: ComfyHost) -> "Image":
    """The input picture in the left half, the new one in the right."""
    from PIL import Image

    before = _run(host, "text_to_image", prompt="a large red circle on a white background", seed=1)
    before.save(host.input_dir / "before.png")
    prompt = "a large green circle on a yellow background"
    after = _run(host, "image_to_image", prompt=prompt, image="before.png", seed=1)
    half = before.width // 2
    after.paste(before.crop((0, 0, half - 1, before.height)), (0, 0))
    after.paste("white", (half - 1, 0, half + 1, before.height))
    return after.resize((400, 400), Image.Resampling.LANCZOS)


def _readme_picture(host: ComfyHost) -> "Image":
    """Eight pictures of seed 1 in two rows, each over its prompt."""
    from PIL import Image, ImageDraw, ImageFont

    prompts = (
        ("a red circle", "on a blue background"),
        ("a yellow star", "on a purple background"),
        ("a large green triangle", "on a white background"),
        ("a white square", "on an orange background"),
        ("a blue square above an orange circle", "on a white background"),
        ("a yellow triangle to the left of a red square", "on a black background"),
        ("a purple circle below a green square", "on a yellow background"),
        ("an orange triangle to the right of a white circle", "on a blue background"),
    )
    side, caption, gap = 256, 34, 8
    sheet = Image.new("RGB", (4 * (side + gap) - gap, 2 * (side + caption + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, lines in enumerate(prompts):
        x, y = index % 4 * (side + gap), index // 4 * (side + caption + gap)
        sheet.paste(_run(host, "text_to_image", prompt=" ".join(lines), seed=1), (x, y))
        draw.text((x, y + side + 2), "\n".join(lines), fill="black", font=font)
    return sheet


README_PICTURE = ROOT / "docs" / "krea_mini.jpg"
THUMBNAILS: dict[str, Callable[[ComfyHost], "Image"]] = {
    "text_to_image": _text_to_image,
    "image_to_image": _image_to_image,
}
"""Workflow -> how krea-mini paints its thumbnail, 400 px square."""
