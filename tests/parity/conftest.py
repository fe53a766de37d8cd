"""ComfyUI inside the test process, so that tensors can be compared bit by bit."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

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
