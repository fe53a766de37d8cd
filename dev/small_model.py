"""The small model krea-mini in the place of the 12B weights: its files, and the graph inputs that name them."""

import copy
import json

from dev.client import Graph
from dev.environment import ROOT
from krea.model_file.catalogue import SMALL_MODEL

FOLDER = ROOT / "models" / "krea-mini"
FLUX, CLIP_L, T5, VAE, SIGLIP, REDUX = SMALL_MODEL.values()

FILES = [
    ("diffusion_models", FOLDER / FLUX),
    ("text_encoders", FOLDER / CLIP_L),
    ("text_encoders", FOLDER / T5),
    ("vae", FOLDER / VAE),
    ("clip_vision", FOLDER / SIGLIP),
    ("style_models", FOLDER / REDUX),
]
"""The files with their folders below ComfyUI's models folder."""

INPUTS = {
    "FluxKreaModelLoader": {"diffusion_model": FLUX, "text_encoder_1": CLIP_L, "text_encoder_2": T5, "vae": VAE},
    "FluxKreaStyleModelLoader": {"vision_encoder": SIGLIP, "adapter": REDUX},
    "FluxKreaAspectRatioLatent": {"aspect_ratio": "1:1", "resolution": "custom", "custom_megapixels": 0.0625},
}
"""Node id -> the inputs that change, and nothing else does: file names, and the 256x256 px of its training."""


def workflow(name: str) -> Graph:
    """A new copy of workflows/api/NAME.json that runs on krea-mini."""
    return for_small_model(json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")))


def for_small_model(graph: Graph) -> Graph:
    """A copy of a shipped API-format graph that runs on krea-mini."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        node["inputs"].update(INPUTS.get(node["class_type"], {}))
    return graph
