"""The frontend's own check of a graph's form, from which the published workflow schema 0.4 is generated."""

import json

import pytest

from dev.environment import ROOT

GRAPHS = sorted([*ROOT.glob("workflows/*.json"), *ROOT.glob("subgraphs/*.json")])
LOAD = """async (graph) => {
    await window.app.extensionManager.setting.set("Comfy.Validation.Workflows", true)
    await window.app.loadGraphData(graph)
}"""


def complaints(page, graph):
    page.evaluate(LOAD, graph)
    page.wait_for_timeout(500)
    return page.locator(".p-toast-message").all_inner_texts()


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_graph_has_the_form_that_the_frontend_expects(page, path):
    found = complaints(page, json.loads(path.read_text(encoding="utf-8")))
    assert not [text for text in found if "nvalid" in text], found


def test_frontend_complains_of_a_wrong_form(page):
    graph = json.loads(GRAPHS[-1].read_text(encoding="utf-8"))
    graph["nodes"][0]["pos"] = "left"
    assert any("nvalid" in text for text in complaints(page, graph))
