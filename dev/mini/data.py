"""Training batches for the transformer: latents of drawn pictures and tokens of their captions.

A batch is a function of the seed and its number alone, so a resumed run sees what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .autoencoder import LinearEncoder
from .captions import TAILS, caption, tail
from .pictures import SIZES, Scene, draw, random_scene, recoloured
from .text import RARE, T5_WIDTH, BagOfWords, Tokenizers, fold

END, PADDING = 1, 0
CHUNK = 100
# What captions say of their pictures, and how often.
CAPTIONS = {"true": 0.7, "other colours": 0.14, "another scene": 0.06, "empty": 0.1}
# Wrong captions come with noise levels up to this one, where the picture itself shows what is in it.
WRONG_BELOW = 0.8


@dataclass
class Batch:
    """latent Bx16xhxw, ids BxL, padding B (see text.fold), pooled Bx32, rare RARExT5 width.

    below: B, the highest noise level at which each caption stands by its picture.
    """

    latent: Tensor
    below: Tensor
    ids: Tensor
    padding: Tensor
    pooled: Tensor
    rare: Tensor
    generator: torch.Generator


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


class Captions:
    """Captions as tokens of both encoders."""

    def __init__(self, tokenizers: Tokenizers, bag: BagOfWords, seed: int):
        self.tokenizers, self.bag = tokenizers, bag
        self.words = self._known_words(seed)
        self.place = {word: place for place, word in enumerate(self.words)}

    def _known_words(self, seed: int) -> list[int]:
        """The T5 ids that captions use; the T5 learns an embedding for each."""
        rng = random.Random(f"{seed}-words")
        texts = [caption(random_scene(rng), rng) + tail(True, 3, rng) + tail(False, 0, rng) for _ in range(6000)]
        capitalised = [text[0].upper() + text[1:] for text in texts]  # few of them are so already
        return sorted({PADDING, END}.union(*self.tokenizers.t5(texts + capitalised)))

    def _rare_t5(self, count: int, rng: random.Random) -> list[int]:
        return [len(self.words) + rng.randrange(RARE) for _ in range(count)]

    def encode(self, texts: list[str], tails: list[str], rng: random.Random | None = None):
        """(ids BxL, padding B, pooled Bx32) of texts followed by their tails.

        With an rng, words of the tails are swapped for rare ones, and rare ones slip in before some captions.
        """
        heads, ends = self.tokenizers.t5(texts), self.tokenizers.t5(tails, continued=True)
        clip_heads, clip_ends = self.tokenizers.clip(texts), self.tokenizers.clip(tails)
        rows, clip_rows = [], []
        for head, end, clip_head, clip_end in zip(heads, ends, clip_heads, clip_ends, strict=True):
            head, end = ([self.place.get(word, len(self.words)) for word in part] for part in (head, end))
            if rng is not None:
                swap = rng.choice((0.0, 0.2, 1.0))
                end = [self._rare_t5(1, rng)[0] if rng.random() < swap else word for word in end]
                clip_end = [rng.randrange(300, 49000) if rng.random() < swap else word for word in clip_end]
                if head and rng.random() < 0.1:
                    count = rng.randint(1, 6)
                    head = self._rare_t5(count, rng) + head
                    clip_head = [rng.randrange(300, 49000) for _ in range(count)] + clip_head
            rows.append(head + end + [self.place[END]])
            clip_rows.append(clip_head + clip_end)
        ids, padding = fold(rows, self.place[PADDING])
        return ids, padding, self.bag(clip_rows)


class Batches:
    """The training set: number -> Batch."""

    def __init__(self, pictures: Pictures, captions: Captions, seed: int, size: int):
        self.pictures, self.captions, self.seed, self.size = pictures, captions, seed, size

    def __call__(self, number: int) -> Batch:
        """A batch by its number, all of one picture size; some captions are empty or wrong."""
        rng = random.Random(f"{self.seed}-batch-{number}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        shape = rng.choices(list(SIZES), list(SIZES.values()))[0]
        # One kind of tail a batch keeps its texts alike in length.
        enhanced, sentences = rng.choices(list(TAILS), list(TAILS.values()))[0]
        scenes = self.pictures.scenes[shape]
        chosen = [rng.randrange(len(scenes)) for _ in range(self.size)]
        latent = self.pictures.latents[shape][chosen].float()
        texts, tails, below = [], [], []
        for index in chosen:
            scene = scenes[index]
            kind = rng.choices(list(CAPTIONS), list(CAPTIONS.values()))[0]
            if kind == "other colours":
                scene = recoloured(scene, rng)
            elif kind == "another scene":
                scene = random_scene(rng, shape)
            below.append(WRONG_BELOW if kind in ("other colours", "another scene") else 1.0)
            texts.append("" if kind == "empty" else caption(scene, rng))
            tails.append("" if kind == "empty" else tail(enhanced, sentences, rng))
        ids, padding, pooled = self.captions.encode(texts, tails, rng)
        rare = torch.randn(RARE, T5_WIDTH, generator=generator)
        return Batch(latent, torch.tensor(below), ids, padding, pooled, rare, generator)
