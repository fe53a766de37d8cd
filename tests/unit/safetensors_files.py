"""Safetensors files for tests: any header in front of sparse data, so that 12 GB cost no disk."""

import json
import math
import os
from pathlib import Path

from krea.model_file.header import DTYPE_BITS

Shapes = dict[str, tuple[int, ...]]


def write_sparse(path: Path, shapes: Shapes, dtype: str = "BF16", metadata: dict[str, str] | None = None) -> Path:
    """Write a valid file with these tensors; their data are a hole that reads as zeros."""
    fields, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    if metadata:
        fields["__metadata__"] = metadata
    write_header(path, json.dumps(fields).encode())
    os.truncate(path, path.stat().st_size + end)
    return path


def write_header(path: Path, text: bytes) -> Path:
    """Write a header of these bytes with its right size, and nothing behind it."""
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


def flux(hidden=3072, double=19, single=38, text=4096, pooled=768, channels=64, guidance=True) -> Shapes:
    """FLUX.1's own tensors, by default in the sizes of Krea [dev]: 11.9 billion numbers."""
    shapes = {"img_in.weight": (hidden, channels), "img_in.bias": (hidden,)}
    shapes |= {"txt_in.weight": (hidden, text), "txt_in.bias": (hidden,)}
    for name, width in {"time_in": 256, "vector_in": pooled, **({"guidance_in": 256} if guidance else {})}.items():
        shapes |= {f"{name}.in_layer.weight": (hidden, width), f"{name}.in_layer.bias": (hidden,)}
        shapes |= {f"{name}.out_layer.weight": (hidden, hidden), f"{name}.out_layer.bias": (hidden,)}
    for stream in (f"double_blocks.{i}.{side}_" for i in range(double) for side in ("img", "txt")):
        shapes |= {f"{stream}attn.norm.{side}_norm.scale": (128,) for side in ("query", "key")}
        for layer, out, width in (
            *(("mod.lin", 6 * hidden, hidden), ("attn.qkv", 3 * hidden, hidden), ("attn.proj", hidden, hidden)),
            *(("mlp.0", 4 * hidden, hidden), ("mlp.2", hidden, 4 * hidden)),
        ):
            shapes |= {f"{stream}{layer}.weight": (out, width), f"{stream}{layer}.bias": (out,)}
    for block in (f"single_blocks.{i}." for i in range(single)):
        shapes |= {f"{block}norm.{side}_norm.scale": (128,) for side in ("query", "key")}
        for layer, out, width in (
            *(("linear1", 7 * hidden, hidden), ("linear2", hidden, 5 * hidden)),
            ("modulation.lin", 3 * hidden, hidden),
        ):
            shapes |= {f"{block}{layer}.weight": (out, width), f"{block}{layer}.bias": (out,)}
    shapes |= {"final_layer.linear.weight": (64, hidden), "final_layer.linear.bias": (64,)}
    return shapes | {
        "final_layer.adaLN_modulation.1.weight": (2 * hidden, hidden),
        "final_layer.adaLN_modulation.1.bias": (2 * hidden,),
    }


def t5(width=4096, layers=24, heads=64, head_width=64, feed=10240, vocabulary=32128, gated=True) -> Shapes:
    """A T5 encoder, by default T5-XXL."""
    shapes = {"shared.weight": (vocabulary, width), "encoder.final_layer_norm.weight": (width,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
    for i in range(layers):
        attention = f"encoder.block.{i}.layer.0.SelfAttention."
        dense = f"encoder.block.{i}.layer.1.DenseReluDense."
        shapes |= {f"{attention}{name}.weight": (heads * head_width, width) for name in "qkv"}
        shapes |= {f"{attention}o.weight": (width, heads * head_width), f"{dense}wo.weight": (width, feed)}
        shapes |= {f"{dense}{name}.weight": (feed, width) for name in (("wi_0", "wi_1") if gated else ("wi",))}
        shapes |= {f"encoder.block.{i}.layer.{j}.layer_norm.weight": (width,) for j in (0, 1)}
    return shapes


def clip(width=768, layers=12, feed=3072, vocabulary=49408) -> Shapes:
    """A CLIP text model, by default CLIP-L."""
    shapes = {
        "text_model.embeddings.token_embedding.weight": (vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_projection.weight": (width, width),
    }
    for layer in (f"text_model.encoder.layers.{i}." for i in range(layers)):
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (width, width) for name in ("q", "k", "v", "out")}
        shapes |= {f"{layer}mlp.fc1.weight": (feed, width), f"{layer}mlp.fc2.weight": (width, feed)}
    return shapes


def vae(channels=16) -> Shapes:
    """The ends of a convolutional autoencoder, by default of FLUX.1's."""
    shapes = {"encoder.conv_in.weight": (128, 3, 3, 3), "encoder.conv_out.weight": (2 * channels, 512, 3, 3)}
    return shapes | {"decoder.conv_in.weight": (512, channels, 3, 3), "decoder.conv_out.weight": (3, 128, 3, 3)}


def siglip(width=1152, layers=27, feed=4304, grid=27, patch=14) -> Shapes:
    """A SigLIP vision encoder, by default so400m at 384 px."""
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "vision_model.embeddings.position_embedding.weight": (grid * grid, width),
        "vision_model.post_layernorm.weight": (width,),
    }
    for layer in (f"vision_model.encoder.layers.{i}." for i in range(layers)):
        shapes |= {f"{layer}mlp.fc1.weight": (feed, width), f"{layer}mlp.fc2.weight": (width, feed)}
    return shapes


def redux(width=1152, text=4096) -> Shapes:
    """The adapter of FLUX.1 Redux [dev]."""
    return {
        "redux_up.weight": (3 * text, width),
        "redux_up.bias": (3 * text,),
        "redux_down.weight": (text, 3 * text),
        "redux_down.bias": (text,),
    }
