"""Vision Transformer (ViT) classifiers in the folder layout of Hugging Face transformers, in plain torch.

The network is that of "An Image is Worth 16x16 Words" (arXiv 2010.11929): patches and a class token through pre-norm
transformer layers, then a linear layer on the class token.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from ..model_file.header import ModelFileError, read_header

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"

# What the network and `pixels` below do; a folder that says otherwise would be scored wrongly.
_EXPECTED = {
    CONFIG: {"model_type": "vit", "hidden_act": "gelu", "problem_type": "single_label_classification"},
    PREPROCESSOR: {
        "do_resize": True,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    },
}

# The names of our modules -> those in the file.
_NAMES = {
    "class_token": "vit.embeddings.cls_token",
    "positions": "vit.embeddings.position_embeddings",
    "patches": "vit.embeddings.patch_embeddings.projection",
    "layers": "vit.encoder.layer",
    "norm": "vit.layernorm",
    "norm1": "layernorm_before",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "norm2": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a network, and what it expects of pictures.

    label: the index of the class whose probability is asked for, of `labels`.
    mean, std: of each channel of pictures in 0..1.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    feed: int
    epsilon: float
    labels: int
    label: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class VisionTransformer(nn.Module):
    """A ViT classifier: pixels (B, 3, S, S), normalised, -> logits (B, labels)."""

    def __init__(self, config: VitConfig, operations):
        super().__init__()
        self.config = config
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions = nn.Parameter(torch.empty(1, tokens, config.width))
        self.patches = operations.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList(Layer(config, operations) for _ in range(config.depth))
        self.norm = operations.LayerNorm(config.width, config.epsilon)
        self.classifier = operations.Linear(config.width, config.labels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(pixels).flatten(2).mT  # (B, 3, S, S) -> (B, L, width)
        tokens = torch.cat((self.class_token.expand(len(tokens), -1, -1), tokens), 1) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return self.classifier(self.norm(tokens[:, 0]))

    def pixels(self, picture: torch.Tensor) -> torch.Tensor:
        """A picture of bytes (H, W, 3) as the network expects it: (1, 3, S, S), squashed to a square, normalised."""
        size = (self.config.image_size, self.config.image_size)
        square = F.interpolate(picture.movedim(-1, 0)[None], size, mode="bilinear", antialias=True) / 255
        mean, std = (square.new_tensor(numbers).view(3, 1, 1) for numbers in (self.config.mean, self.config.std))
        return (square - mean) / std

    def probability(self, pixels: torch.Tensor) -> torch.Tensor:
        """P(label) of pixels (B, 3, S, S), as (B,) float32 on the CPU; runs where the weights are."""
        logits = self(pixels.to(self.class_token))
        return logits.float().softmax(-1)[:, self.config.label].cpu()


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to what came in."""

    def __init__(self, config: VitConfig, operations):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm1, self.norm2 = (operations.LayerNorm(width, config.epsilon) for _ in range(2))
        self.query, self.key, self.value, self.out = (operations.Linear(width, width) for _ in range(4))
        self.up, self.down = operations.Linear(width, config.feed), operations.Linear(config.feed, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm1(tokens)
        heads = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        tokens = tokens + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return tokens + self.down(F.gelu(self.up(self.norm2(tokens))))


def load_vit(
    folder: str | os.PathLike, label: str, device: torch.device | str, dtype: torch.dtype, operations=nn
) -> VisionTransformer:
    """The classifier in a folder, for the probability of one of its labels.

    Args:
        operations: where its layers' classes come from, such as ComfyUI's, which cast and move weights as needed.

    Raises:
        ModelFileError: a file is missing, damaged or of another architecture, or there is no such label.
    """
    folder = Path(folder)
    with torch.device("meta"):
        network = VisionTransformer(_read_config(folder, label), operations)
    header = read_header(folder / WEIGHTS)
    names = {name: ".".join(_NAMES.get(part, part) for part in name.split(".")) for name in network.state_dict()}
    for name, parameter in network.state_dict().items():
        found = header.tensors.get(names[name])
        if found is None:
            raise ModelFileError(f"{WEIGHTS} has no tensor {names[name]}.")
        if found.dtype not in ("F32", "F16", "BF16") or found.shape != parameter.shape:
            raise ModelFileError(
                f"{WEIGHTS} has {names[name]} as {found.dtype} {found.shape}. Expected floats of "
                f"{tuple(parameter.shape)}, as {CONFIG} says."
            )
    with safe_open(folder / WEIGHTS, "pt") as file:
        # Copied: a mapped file that is replaced would end the process.
        weights = {name: file.get_tensor(stored).to(device, dtype, copy=True) for name, stored in names.items()}
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def _read_config(folder: Path, label: str) -> VitConfig:
    model, pictures = _read_json(folder / CONFIG), _read_json(folder / PREPROCESSOR)
    labels = model.get("label2id")
    if not isinstance(labels, dict) or label not in labels:
        raise ModelFileError(f"{CONFIG} has no label named {label!r} in label2id.")
    index = str(labels[label])  # some files have it as text
    if not index.isdecimal() or int(index) >= len(labels):
        raise ModelFileError(f"{CONFIG} gives {label!r} the index {index}. Expected one below {len(labels)}.")
    epsilon = model.get("layer_norm_eps")
    if not _is_number(epsilon):
        raise ModelFileError(f"{CONFIG} has layer_norm_eps {epsilon!r}. Expected a number.")
    config = VitConfig(
        image_size=_size(model, "image_size"),
        patch_size=_size(model, "patch_size"),
        width=_size(model, "hidden_size"),
        depth=_size(model, "num_hidden_layers"),
        heads=_size(model, "num_attention_heads"),
        feed=_size(model, "intermediate_size"),
        epsilon=epsilon,
        labels=len(labels),
        label=int(index),
        mean=_channels(pictures, "image_mean"),
        std=_channels(pictures, "image_std"),
    )
    if config.width % config.heads:
        raise ModelFileError(f"{CONFIG} has {config.heads} heads, which do not divide the width of {config.width}.")
    if pictures.get("size") not in (config.image_size, {"height": config.image_size, "width": config.image_size}):
        raise ModelFileError(
            f"{PREPROCESSOR} has the size {pictures.get('size')}. Expected {config.image_size}, as {CONFIG} says."
        )
    return config


def _read_json(path: Path) -> dict:
    try:
        fields = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{path.name} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path.name} cannot be read as JSON ({type(error).__name__}).") from error
    if not isinstance(fields, dict):
        raise ModelFileError(f"{path.name} holds a JSON {type(fields).__name__}. Expected an object.")
    for key, expected in _EXPECTED[path.name].items():
        if fields.get(key) not in (None, expected):
            raise ModelFileError(f"{path.name} has {key} {fields[key]!r}. Expected {expected!r}.")
    return fields


def _size(fields: Mapping, key: str) -> int:
    value = fields.get(key)
    if type(value) is not int or value < 1:
        raise ModelFileError(f"{CONFIG} has {key} {value!r}. Expected a whole number above 0.")
    return value


def _channels(fields: Mapping, key: str) -> tuple[float, ...]:
    value = fields.get(key)
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
        raise ModelFileError(f"{PREPROCESSOR} has {key} {value!r}. Expected three numbers.")
    return tuple(map(float, value))


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
