"""The drawn pictures of the training set: their scenes, and their latents in memory."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, replace
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .autoencoder import LinearEncoder
from .pictures import SIZES, SQUARE, Scene, draw, random_scene
from .styles import random_style
from .vision import encoder_view

# So many pictures, and so many styles, are drawn by one call of a process.
CHUNK = 100
STYLE_CHUNK = 20
# Scenes drawn in each random style, beside its reference picture.
TARGETS = 2


def _scenes(seed: int, part: int, size: tuple[int, int]) -> list[Scene]:
    rng = random.Random(f"{seed}-{size}-{part}")
    return [random_scene(rng, size) for _ in range(CHUNK)]


def _latents(encoder: LinearEncoder, seed: int, part: int, size: tuple[int, int]) -> np.ndarray:
    return np.stack([encoder(draw(scene)).astype(np.float16) for scene in _scenes(seed, part, size)])


class Pictures:
    """`count` drawn scenes with their latents, in memory by size; the latents also in a file of `folder`."""

    def __init__(self, encoder: LinearEncoder, seed: int, count: int, folder: Path):
        parts = {size: max(1, round(count * share / CHUNK)) for size, share in SIZES.items()}
        jobs = [(seed, part, size) for size, number in parts.items() for part in range(number)]
        self.scenes: dict[tuple[int, int], list[Scene]] = {size: [] for size in SIZES}
        for job in jobs:
            self.scenes[job[2]] += _scenes(*job)
        # The encoder is fitted to drawn pictures, so another way to draw them gives another file name.
        digest = hashlib.sha256(encoder.projection.tobytes()).hexdigest()[:12]
        file = folder / f"pictures-{seed}-{count}-{digest}.safetensors"
        if not file.exists():
            self._draw(encoder, jobs, file)
        latents = load_file(file)
        self.latents = {size: latents[f"{size[0]}x{size[1]}"] for size in SIZES}
        self.encoder = encoder

    def latent(self, scene: Scene) -> Tensor:
        """16xhxw of a scene that is drawn now."""
        return torch.from_numpy(self.encoder(draw(scene)))

    @staticmethod
    def _draw(encoder: LinearEncoder, jobs: list[tuple[int, int, tuple[int, int]]], file: Path) -> None:
        print("drawing pictures", flush=True)
        with Pool(os.cpu_count()) as pool:
            chunks = pool.starmap(_latents, [(encoder, *job) for job in jobs], chunksize=1)
        latents = {
            f"{size[0]}x{size[1]}": np.concatenate(
                [chunk for chunk, job in zip(chunks, jobs, strict=True) if job[2] == size]
            )
            for size in SIZES
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({name: torch.from_numpy(array) for name, array in latents.items()}, partial)
        os.replace(partial, file)


@dataclass(frozen=True)
class Styled:
    """Pictures of one size in styles; style i has the scenes from i * TARGETS on and the reference i.

    latents: Nx16xhxw; references: Mx3xSIDExSIDE uint8, what the vision encoder sees of a square picture;
    reference_latents: Mx16x32x32, the latents of those.
    """

    scenes: list[Scene]
    reference_scenes: list[Scene]
    latents: Tensor
    references: Tensor
    reference_latents: Tensor


def _styled_scenes(seed: int, part: int, size: tuple[int, int]) -> tuple[list[Scene], list[Scene]]:
    rng = random.Random(f"{seed}-styled-{size}-{part}")
    scenes, references = [], []
    for _ in range(STYLE_CHUNK):
        style = random_style(rng)
        scenes += [replace(random_scene(rng, size), style=style) for _ in range(TARGETS)]
        references.append(replace(random_scene(rng, SQUARE), style=style))
    return scenes, references


def _styled_arrays(encoder: LinearEncoder, seed: int, part: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """The three tensors of Styled as arrays, with whole pictures (HxWx3) in the place of what the encoder sees.

    Without torch: its threads do not outlive the fork of a process.
    """
    scenes, references = _styled_scenes(seed, part, size)
    squares = [draw(scene) for scene in references]
    return (
        np.stack([encoder(draw(scene)).astype(np.float16) for scene in scenes]),
        np.stack(squares),
        np.stack([encoder(square).astype(np.float16) for square in squares]),
    )


class StyledPictures:
    """Pictures in `styles` random styles, with a reference picture for each style, in memory by size."""

    def __init__(self, encoder: LinearEncoder, seed: int, styles: int):
        print("drawing styled pictures", flush=True)
        self._styled: dict[tuple[int, int], Styled] = {}
        with Pool(os.cpu_count()) as pool:
            for size, share in SIZES.items():
                jobs = [(seed, part, size) for part in range(max(1, round(styles * share / STYLE_CHUNK)))]
                chunks = pool.starmap(_styled_arrays, [(encoder, *job) for job in jobs], chunksize=1)
                latents, squares, square_latents = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
                views = np.stack([encoder_view(square) for square in squares])
                lists = zip(*(_styled_scenes(*job) for job in jobs), strict=True)
                scenes, references = ([scene for part in parts for scene in part] for parts in lists)
                self._styled[size] = Styled(
                    scenes, references, *map(torch.from_numpy, (latents, views, square_latents))
                )

    def of(self, size: tuple[int, int]) -> Styled:
        """The pictures of one size."""
        return self._styled[size]
