"""What every test may use: the shipped graphs with the small model in them, and one real ComfyUI for the session."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev import small_model
from dev.client import Graph
from dev.environment import ROOT
from dev.host import ComfyHost


def pytest_configure() -> None:
    # A shell starts what it runs in the background, such as this suite, deaf to Ctrl-C, which some tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def small_graph() -> Callable[[str], Graph]:
    """Reads workflows/api/NAME.json with the small model put in its place; each call gives a fresh copy."""
    return small_model.workflow


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyHost]:
    """A running ComfyUI with the pack and the small model, one for the whole session."""
    with ComfyHost(tmp_path_factory.mktemp("comfyui"), small_model.FILES) as host:
        yield host


@pytest.fixture(scope="session")
def siglip_config():
    """A SigLIP vision encoder that sees 6x6 tokens."""
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=72, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, image_size=84, patch_size=14
    )


@pytest.fixture(scope="session")
def style_files(siglip_config, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """A vision encoder and an adapter for krea-mini in the published layouts, with weights of no meaning.

    Each with its folder below ComfyUI's models folder.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import SiglipVisionModel

    folder = tmp_path_factory.mktemp("style")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = SiglipVisionModel(siglip_config).state_dict()
        redux = {
            "redux_up.weight": torch.randn(192, 72) / 9,
            "redux_up.bias": torch.randn(192) / 9,
            "redux_down.weight": torch.randn(64, 192) / 6,
            "redux_down.bias": torch.randn(64) / 6,
        }
    vision = {name if name.startswith("vision_model.") else f"vision_model.{name}": t for name, t in vision.items()}
    files = [("clip_vision", folder / "small_siglip.safetensors"), ("style_models", folder / "small_redux.safetensors")]
    save_file(vision, files[0][1])
    save_file(redux, files[1][1])
    return files
