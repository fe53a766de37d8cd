"""What the tests do on the frontend's page, in one place."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from dev import small_model
from dev.environment import CACHE

SCREENSHOTS = CACHE / "screenshots"

# What this frontend always logs on a fresh user folder without a network: not ours.
NOISE = (
    "404 (Not Found)",
    "ComfyApp graph accessed before initialization",
    "https://huggingface.co/",  # the missing-model window asks for file sizes, and ComfyUI's own policy forbids it
)


def our_errors(page: Page) -> list[str]:
    """The errors in the page's console that ComfyUI's frontend does not have by itself."""
    return [error for error in page.console_errors if not any(noise in error for noise in NOISE)]


def open_graph(page: Page, graph: dict[str, Any]) -> None:
    """Opens a graph as a dropped file would."""
    page.evaluate("(graph) => app.loadGraphData(graph, true, true, null)", graph)


def use_small_model(page: Page) -> None:
    """Puts the small model's names and size into the open graph, as a user would who picks and types them."""
    page.evaluate(
        """(values) => {
            const graphs = [app.graph, ...app.graph.subgraphs.values()];
            for (const widget of graphs.flatMap((graph) => graph.nodes).flatMap((node) => node.widgets ?? []))
                if (widget.name in values) {
                    widget.value = values[widget.name];
                    widget.callback?.(widget.value);
                }
        }""",
        {name: value for inputs in small_model.INPUTS.values() for name, value in inputs.items()},
    )


def run(page: Page, server: Any) -> dict[str, Any]:
    """Presses Run, waits until the graph has finished and gives its record."""
    before = set(server.get("/history"))
    page.get_by_test_id("queue-button").click()
    for _ in range(600):
        finished = set(server.get("/history")) - before
        if finished:
            return server.wait(finished.pop())
        page.wait_for_timeout(200)
    raise TimeoutError("The graph that Run queued did not finish within two minutes.")


def screenshot(page: Page, name: str) -> Path:
    """Saves what the page shows, to be looked at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path)
    return path
