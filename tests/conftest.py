"""What every test may use: the shipped graphs with the small model in them, and one real ComfyUI for the session."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev import small_model
from dev.client import Graph
from dev.environment import ROOT
from dev.host import ComfyHost


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def small_graph() -> Callable[[str], Graph]:
    """Reads workflows/api/NAME.json with the small model put in its place; each call gives a fresh copy."""

    def read(name: str) -> Graph:
        text = (ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")
        return small_model.for_small_model(json.loads(text))

    return read


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyHost]:
    """A running ComfyUI with the pack and the small model, one for the whole session."""
    with ComfyHost(tmp_path_factory.mktemp("comfyui"), small_model.FILES) as host:
        yield host
