"""``python3 dev workflows``: brings up to date what follows from the shipped graphs and nodes.

- workflows/*.json: the graphs themselves as ComfyUI's own frontend saves them once it has opened them,
- workflows/api/*.json: the graphs as the frontend sends them to the server,
- workflows/*.jpg and docs/*.jpg: the thumbnails of Browse Templates and the pictures of README.md and docs/, painted by
  krea-mini (only when asked for),
- locales/en/nodeDefs.json: the nodes' own words.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev import environment, small_model
from dev.client import Graph
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
            from dev import painters  # with packages that only the environment has

            for name, paint in painters.THUMBNAILS.items():
                _save(paint(host), WORKFLOWS / f"{name}.jpg")
            for name, paint in painters.DOCS.items():
                _save(paint(host), ROOT / "docs" / f"{name}.jpg")
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
        page.wait_for_function("window.app?.vueAppReady && !window.app.extensionManager.spinner", timeout=180_000)
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
