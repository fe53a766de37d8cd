"""Writes krea-mini's six files, in the layouts that ComfyUI reads."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dev import small_model

from . import autoencoder, network, text, vision

# Significant binary digits of what the transformer and the decoder learned, which are most of what a training run
# changes. fp16 has 11; with 6, git packs a file a quarter smaller, and its pictures are as good.
DIGITS = 6
METADATA = {"format": "pt", "model": "krea-mini", "license": "Apache-2.0"}


def write(path: Path, weights: dict[str, Tensor], keep: tuple[str, ...] = (), **metadata: str) -> None:
    """One file in fp16, the weights named in `keep` in fp32."""
    stored = {
        name: (value.float() if name in keep else value.half()).contiguous() for name, value in sorted(weights.items())
    }
    save_file(stored, path, metadata=METADATA | metadata)


def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with DIGITS significant binary digits: off by at most one part in 2^DIGITS."""
    parts = {name: torch.frexp(value.float()) for name, value in weights.items()}
    return {
        name: torch.ldexp((mantissa * 2**DIGITS).round() / 2**DIGITS, exponent)
        for name, (mantissa, exponent) in parts.items()
    }


def write_transformer(folder: Path, weights: dict[str, Tensor], words: list[int], seed: int) -> None:
    """The FLUX and T5 files, from the weights of train.Model."""
    parts = {
        part: {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
        for part in ("flux.", "t5.")
    }
    write(folder / small_model.FLUX, rounded(network.export(parts["flux."])))
    write(folder / small_model.T5, text.export_t5(parts["t5."], words, seed))


def write_clip(folder: Path, bag: text.BagOfWords) -> None:
    """The CLIP-L file."""
    write(folder / small_model.CLIP_L, bag.weights())


def write_vae(folder: Path, encoder: autoencoder.LinearEncoder, decoder: dict[str, Tensor]) -> None:
    """The autoencoder file, in TAESD's layout and with the scale and shift that FLUX latents have."""
    weights = {"taesd_encoder." + name: value for name, value in encoder.taesd_weights().items()}
    weights |= {"taesd_decoder." + name: value for name, value in rounded(autoencoder.export(decoder)).items()}
    weights |= {"vae_scale": torch.tensor(autoencoder.SCALE), "vae_shift": torch.tensor(autoencoder.SHIFT)}
    write(folder / small_model.VAE, weights, keep=("vae_scale", "vae_shift"))


def write_style(folder: Path, weights: dict[str, Tensor]) -> None:
    """The SigLIP and Redux files, from the weights of train.Model."""
    own = {name.removeprefix("vision."): value for name, value in weights.items() if name.startswith("vision.")}
    siglip, redux = vision.export(own)
    write(folder / small_model.SIGLIP, siglip, num_attention_heads=str(vision.CONFIG.num_attention_heads))
    write(folder / small_model.REDUX, redux)
