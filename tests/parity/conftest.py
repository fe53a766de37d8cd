"""ComfyUI inside the test process, so that tensors can be compared bit by bit."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dev import small_model
from dev.environment import ROOT, comfyui_root


@dataclass(frozen=True)
class InProcessComfy:
    """ComfyUI's modules can be imported as its own code does (``import comfy.sd``); ``nodes`` are the pack's.

    ``nodes`` maps a node id to its class, ``module`` is the pack as ComfyUI loaded it, ``root`` ComfyUI's folder.
    """

    nodes: dict[str, type]
    module: ModuleType
    root: Path


@pytest.fixture(scope="session")
def comfy() -> InProcessComfy:
    """The pack loaded by ComfyUI's own loader, on the CPU."""
    root = comfyui_root()
    # The checkout is on the path too, for `krea` and `dev`: ComfyUI must come first, or its `nodes` would be ours.
    sys.path.insert(0, str(root))
    before, sys.argv = sys.argv, ["main.py", "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # reads sys.argv
    finally:
        sys.argv = before
    import nodes

    assert Path(nodes.__file__).parent == root, f"`import nodes` gave {nodes.__file__}, not ComfyUI's"
    # What ComfyUI itself loads comes with its server only; the pack needs no more than these.
    assert asyncio.run(nodes.load_custom_node(str(ROOT))), "ComfyUI could not load the pack; its log says why"
    module = sys.modules[str(ROOT).replace(".", "_x_")]
    extension = asyncio.run(_extension(module))
    return InProcessComfy({node.GET_SCHEMA().node_id: node for node in extension}, module, root)


async def _extension(module: ModuleType) -> list[type]:
    return await (await module.comfy_entrypoint()).get_node_list()


@dataclass(frozen=True)
class Loaded:
    """What the pack's loader gives for the small model."""

    model: Any
    clip: Any
    vae: Any


@pytest.fixture(scope="session")
def loaded(comfy: InProcessComfy) -> Loaded:
    """The small model through Krea Model Loader."""
    import folder_paths

    for folder, file in small_model.FILES:
        folder_paths.add_model_folder_path(folder, str(file.parent))
    files = small_model.INPUTS["FluxKreaModelLoader"]
    return Loaded(*execute(comfy, "FluxKreaModelLoader", **files).args)


@pytest.fixture(scope="session")
def encode(comfy: InProcessComfy, loaded: Loaded) -> Callable[[str, str], tuple[list, list]]:
    """Positive and negative conditioning of two texts as they stand, through Krea Prompt."""

    def run(prompt: str, negative: str = "") -> tuple[list, list]:
        out = execute(
            comfy,
            "FluxKreaPrompt",
            clip=loaded.clip,
            prompt=prompt,
            negative_prompt=negative,
            texture_enhancement=False,
        )
        return out.args[0], out.args[1]

    return run


@pytest.fixture(scope="session")
def sample(comfy: InProcessComfy, loaded: Loaded) -> Callable[..., Any]:
    """The samples that Krea Sampler makes of a latent tensor, at the recipe's settings unless told otherwise."""

    def run(latent, positive, **settings) -> Any:
        defaults = dict(
            model=loaded.model,
            negative=None,
            seed=0,
            steps=28,
            guidance=4.5,
            true_cfg=1.0,
            true_cfg_start=0.0,
            true_cfg_end=1.0,
            sampler_name="euler",
            start_sigma=1.0,
            guidance_embed=True,
        )
        latent = latent if isinstance(latent, dict) else {"samples": latent}
        out = execute(comfy, "FluxKreaSampler", positive=positive, latent_image=latent, **(defaults | settings))
        return out.args[0]["samples"]

    return run


@pytest.fixture
def desk(comfy, tmp_path, monkeypatch):
    """The pack's desk module, with folders of this test's own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path / name))
    (tmp_path / "output").mkdir()
    module = sys.modules[f"{comfy.module.__name__}.nodes.desk"]
    for place in (module.audit_log, module.quarantine):
        place.cache_clear()
    yield module
    for place in (module.audit_log, module.quarantine):
        place.cache_clear()


def execute(comfy: InProcessComfy, node_id: str, **inputs: Any) -> Any:
    """One node as ComfyUI's executor runs it: on a locked clone of its class, in inference mode."""
    import torch

    node = comfy.nodes[node_id].PREPARE_CLASS_CLONE(None)
    with torch.inference_mode():
        return node.execute(**inputs)
