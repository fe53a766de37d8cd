"""The autoencoder of krea-mini: TAESD's shape, an exact linear encoder, a trained decoder.

The encoder is not trained: the first 16 principal components of 8x8 px patches of drawn pictures are written
into TAESD's convolutions (space-to-depth in the strided ones, residual blocks as the identity). A latent is then
one matrix product, so training pictures are encoded at no cost. Only the decoder learns.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pictures import draw, random_scene
from .stage import fast_arithmetic
from .styles import PLAIN, random_style

PATCH = 8
LATENT_CHANNELS = 16
WIDTH = 64
# ComfyUI's FLUX latent format subtracts the shift and multiplies by the scale; TAESD does the opposite with
# the same two numbers, so the diffusion model sees the encoder's own output.
SCALE, SHIFT = 0.3611, 0.1159
# Where the 64-channel convolutions sit in TAESD's decoder: U upsamples first and has no bias, B is a residual block.
_DECODER = {
    3: "B",
    4: "B",
    5: "B",
    7: "U",
    8: "B",
    9: "B",
    10: "B",
    12: "U",
    13: "B",
    14: "B",
    15: "B",
    17: "U",
    18: "B",
}


def patches(picture: np.ndarray) -> np.ndarray:
    """HxWx3 uint8 -> (H/8)x(W/8)x192 in 0..1, each patch in the order y, x, colour."""
    height, width, _ = picture.shape
    blocks = picture.reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(height // PATCH, width // PATCH, PATCH * PATCH * 3).astype(np.float32) / 255


class LinearEncoder:
    """latent = patch @ projection + offset."""

    def __init__(self, projection: np.ndarray, offset: np.ndarray):
        self.projection = projection
        self.offset = offset

    @classmethod
    def fit(cls, seed: int, pictures: int = 240) -> LinearEncoder:
        """The scaled principal components of `pictures` drawn pictures.

        Scale: standard deviation 1.25 a channel, less where outliers would leave the decoder's tanh(x / 3) * 3.
        """
        rng = random.Random(f"{seed}-basis")
        data = np.concatenate([patches(draw(random_scene(rng))).reshape(-1, 192) for _ in range(pictures)])
        mean = data.mean(0, dtype=np.float64)
        variance, vectors = np.linalg.eigh(np.cov((data - mean).T))
        vectors = vectors[:, np.argsort(-variance)[:LATENT_CHANNELS]]
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(LATENT_CHANNELS)])
        latents = (data - mean) @ vectors
        scale = np.minimum(1.25 / latents.std(0), 4.5 / np.percentile(np.abs(latents), 99.8, axis=0))
        return cls((vectors * scale).astype(np.float32), (-(mean @ vectors) * scale).astype(np.float32))

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """HxWx3 uint8 -> 16x(H/8)x(W/8) float32."""
        return (patches(picture) @ self.projection + self.offset).transpose(2, 0, 1)

    def taesd_weights(self) -> dict[str, Tensor]:
        """The same map as weights of TAESD's encoder."""
        weights: dict[str, Tensor] = {}

        def conv(name: str, inputs: int, outputs: int, bias: bool = True) -> Tensor:
            weights[name + ".weight"] = torch.zeros(outputs, inputs, 3, 3)
            if bias:
                weights[name + ".bias"] = torch.zeros(outputs)
            return weights[name + ".weight"]

        for block in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
            for part in (0, 2, 4):
                conv(f"{block}.conv.{part}", WIDTH, WIDTH)
        conv("0", 3, WIDTH)[range(3), range(3), 1, 1] = 1
        # Two strided convolutions move the four pixels of a 2x2 cell into channels; the third applies the projection.
        for name, channels in (("2", 3), ("6", 12)):
            weight = conv(name, WIDTH, WIDTH, bias=False)
            for cell in range(4):
                for channel in range(channels):
                    weight[cell * channels + channel, channel, 1 + cell // 2, 1 + cell % 2] = 1
        weight = conv("10", WIDTH, WIDTH, bias=False)
        projection = torch.from_numpy(self.projection).view(PATCH, PATCH, 3, LATENT_CHANNELS)
        for y in range(PATCH):
            for x in range(PATCH):
                coarse, fine = (y // 2 % 2) * 2 + x // 2 % 2, (y % 2) * 2 + x % 2
                for colour in range(3):
                    weight[:LATENT_CHANNELS, coarse * 12 + fine * 3 + colour, 1 + y // 4, 1 + x // 4] = projection[
                        y, x, colour
                    ]
        # A bias keeps the projected values positive through the ReLUs that follow; the last convolution takes it off.
        lift = torch.ceil(torch.from_numpy(self.projection).clamp(max=0).abs().sum(0) + 0.5)
        weights["11.conv.4.bias"][:LATENT_CHANNELS] = lift
        conv("14", WIDTH, LATENT_CHANNELS)[range(LATENT_CHANNELS), range(LATENT_CHANNELS), 1, 1] = 1
        weights["14.bias"] = torch.from_numpy(self.offset) - lift
        return weights


class Decoder(nn.Module):
    """TAESD's decoder, with each convolution's weight as a matrix so that Muon can train it."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.matrices = nn.ParameterDict()
        self.biases = nn.ParameterDict()

        def add(name: str, inputs: int, outputs: int, gain: float, identity: bool = False) -> None:
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * gain / math.sqrt(inputs * 9)
            if identity:
                weight[range(outputs), range(inputs), 1, 1] += 1
            self.matrices[name] = nn.Parameter(weight.reshape(outputs, inputs * 9))

        add("1", LATENT_CHANNELS, WIDTH, math.sqrt(2))
        for index, kind in _DECODER.items():
            if kind == "U":
                add(str(index), WIDTH, WIDTH, 0.35, identity=True)
                continue
            for part in (0, 2, 4):
                add(f"{index}_conv_{part}", WIDTH, WIDTH, 0.3 if part == 4 else math.sqrt(2))
                self.biases[f"{index}_conv_{part}"] = nn.Parameter(torch.zeros(WIDTH))
        add("19", WIDTH, 3, 0.5)
        for name, size in (("1", WIDTH), ("19", 3)):
            self.biases[name] = nn.Parameter(torch.full((size,), 0.5 if name == "19" else 0.0))

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.matrices[name]
        bias = self.biases[name] if name in self.biases else None
        weight = weight.view(weight.shape[0], -1, 3, 3).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, bias, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Bx16xhxw -> Bx3x8hx8w in 0..1 (not clipped)."""
        x = latent.contiguous(memory_format=torch.channels_last)
        x = F.relu(self._conv("1", torch.tanh(x / 3) * 3))
        for index, kind in _DECODER.items():
            if kind == "U":
                x = self._conv(str(index), F.interpolate(x, scale_factor=2))
            else:
                y = F.relu(self._conv(f"{index}_conv_0", x))
                y = F.relu(self._conv(f"{index}_conv_2", y))
                x = F.relu(self._conv(f"{index}_conv_4", y) + x)
        return self._conv("19", x)


def export(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Decoder's weights under TAESD's names."""
    weights = {}
    for key, value in state.items():
        part, name = key.split(".")
        if part == "matrices":
            value = value.view(value.shape[0], -1, 3, 3)
        weights[name.replace("_", ".") + (".weight" if part == "matrices" else ".bias")] = value
    return weights


class Crops:
    """Random crops of drawn pictures with their latents; a number always gives the same ones."""

    def __init__(self, encoder: LinearEncoder, seed: int, pictures: int = 1500, cells: int = 8):
        rng = random.Random(f"{seed}-crops")
        self.seed, self.cells = seed, cells
        scenes = [random_scene(rng) for _ in range(pictures)]
        # One picture in two comes in a style.
        styles = [random_style(rng) if index % 2 else PLAIN for index in range(pictures)]
        self.pictures = [draw(replace(scene, style=style)) for scene, style in zip(scenes, styles, strict=True)]
        self.latents = [encoder(picture) for picture in self.pictures]

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        """(pictures Bx3x8cx8c in 0..1, latents Bx16xcxc with a little noise, as a diffusion model leaves it)."""
        rng = random.Random(f"{self.seed}-crops-{number}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        crops, latents = [], []
        while len(crops) < size:
            index = rng.randrange(len(self.pictures))
            picture, latent = self.pictures[index], self.latents[index]
            top = rng.randint(0, latent.shape[1] - self.cells)
            left = rng.randint(0, latent.shape[2] - self.cells)
            cut = latent[:, top : top + self.cells, left : left + self.cells]
            # Plain wall is learned from a few examples; outlines are what needs practice.
            if cut[3:].std() < 0.05 and rng.random() < 0.9:
                continue
            window = slice(top * PATCH, (top + self.cells) * PATCH), slice(left * PATCH, (left + self.cells) * PATCH)
            crops.append(torch.from_numpy(picture[window]).permute(2, 0, 1).float() / 255)
            latents.append(torch.from_numpy(cut))
        clean = torch.stack(latents)
        noise = torch.randn(clean.shape, generator=generator) * 0.06
        return torch.stack(crops), clean + noise * torch.rand(size, 1, 1, 1, generator=generator)


def decoder_loss(decoder: Decoder, pictures: Tensor, latents: Tensor) -> Tensor:
    """Absolute error keeps outlines crisp, squared error is what PSNR measures."""
    with fast_arithmetic():
        error = decoder(latents).float() - pictures
    return error.abs().mean() + 6 * error.square().mean()
