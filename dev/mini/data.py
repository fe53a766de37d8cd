"""Training batches for the transformer: latents of drawn pictures and tokens of their captions.

A batch is a function of the seed and its number alone, so a resumed run sees what an uninterrupted one would have.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from krea.recipe import STYLE_DETAIL

from .captions import TAILS, caption, plain_caption, tail
from .drawn import TARGETS, Pictures, StyledPictures
from .pictures import SIZES, SQUARE, Scene, otherwise, random_scene
from .text import RARE, REACH, T5_WIDTH, BagOfWords, Tokenizers, fold
from .vision import GRID

END, PADDING = 1, 0
# The shares of batches whose pictures are in the style of a reference, and that are the reference's own.
STYLED, IMAGE_PROMPTS = 0.45, 0.12
# The share of styled batches whose strength is 1, as published Redux has it. In the others a strength of 0.5 goes with
# half the amounts of the style, so that the slider means something over its whole length.
FULL_STRENGTH = 0.4
# Tokens per side of a reference whose style is wanted, one a batch: those of the node's default, and fewer. All of them
# are an image prompt.
SIDES = (*[int(STYLE_DETAIL.default)] * 3, 6, 4, 2)
# The share of the other pictures that come with something else to begin from, as image to image does.
EDITED = 0.3
# The shares of pictures and of image prompts without a word.
EMPTY, WORDLESS = 0.1, 0.75


@dataclass
class Batch:
    """latent Bx16xhxw, ids BxL, padding B (see text.fold), pooled Bx32, rare RARExT5 width.

    reference: Bx3xSIDExSIDE uint8, pictures in the style of the latents, or None; side: their tokens per side.
    strength: of the style in the latents, and of the references' attention.
    start: Bx16xhxw, what image to image begins from to come to the latents (for most pictures these), or None.
    """

    latent: Tensor
    ids: Tensor
    padding: Tensor
    pooled: Tensor
    rare: Tensor
    generator: torch.Generator
    reference: Tensor | None = None
    side: int = GRID
    strength: float = 1.0
    start: Tensor | None = None


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

    def plain(self, scenes: list[Scene], count: int) -> Tensor:
        """The ids of plain captions, NxL: `count` each, and then the padding that the T5 reaches from there."""
        texts = self.tokenizers.t5([plain_caption(scene) for scene in scenes])
        ids = torch.full((len(texts), count + REACH), self.place[PADDING])
        for row, words in zip(ids, texts, strict=True):
            known = [self.place[word] for word in (*words, END)]
            row[: len(known)] = torch.tensor(known)
        return ids


class Batches:
    """The training set: number -> Batch. With `styled` pictures, some come with references, some with a start."""

    def __init__(
        self,
        pictures: Pictures,
        captions: Captions,
        seed: int,
        size: int,
        styled: StyledPictures | None = None,
        image_prompts: float = IMAGE_PROMPTS,
    ):
        self.pictures, self.captions, self.seed, self.size = pictures, captions, seed, size
        self.styled, self.image_prompts = styled, image_prompts

    def __call__(self, number: int) -> Batch:
        """A batch by its number, all of one picture size; some captions are empty."""
        rng = random.Random(f"{self.seed}-batch-{number}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        shape = rng.choices(list(SIZES), list(SIZES.values()))[0]
        # One kind of tail a batch keeps its texts alike in length.
        tail_kind = rng.choices(list(TAILS), list(TAILS.values()))[0]
        if self.styled:
            draw = rng.random()
            if draw < STYLED:
                return self._styled(shape, tail_kind, rng, generator)
            if draw < STYLED + self.image_prompts:
                return self._image_prompts(tail_kind, rng, generator)
        scenes = self.pictures.scenes[shape]
        chosen = [rng.randrange(len(scenes)) for _ in range(self.size)]
        latent = self.pictures.latents[shape][chosen].float()
        scenes = [scenes[index] for index in chosen]
        batch = self._batch(latent, scenes, EMPTY, tail_kind, rng, generator)
        if self.styled:
            starts = [
                self.pictures.latent(otherwise(scene, rng)) if rng.random() < EDITED else own
                for scene, own in zip(scenes, latent, strict=True)
            ]
            batch.start = torch.stack(starts)
        return batch

    def _styled(
        self, shape: tuple[int, int], tail_kind: tuple[bool, int], rng: random.Random, generator: torch.Generator
    ) -> Batch:
        """Pictures in the style of a reference, with captions of their own."""
        styled = self.styled.of(shape)
        strength = 1.0 if rng.random() < FULL_STRENGTH else rng.uniform(0.01, 1)  # at 0 there are no references
        latents, scenes, chosen = [], [], []
        for _ in range(self.size):
            own = rng.randrange(len(styled.references))
            chosen.append(own)
            target = own * TARGETS + rng.randrange(TARGETS)
            scene, latent = styled.scenes[target], styled.latents[target]
            if strength < 1:
                latent = self.pictures.latent(replace(scene, style=scene.style.scaled(strength)))
            latents.append(latent.float())
            scenes.append(scene)
        batch = self._batch(torch.stack(latents), scenes, 0.0, tail_kind, rng, generator)
        batch.reference, batch.side, batch.strength = styled.references[chosen], rng.choice(SIDES), strength
        return batch

    def _image_prompts(self, tail_kind: tuple[bool, int], rng: random.Random, generator: torch.Generator) -> Batch:
        """References with all their tokens, most without a word, as captions of themselves."""
        styled = self.styled.of(SQUARE)
        chosen = [rng.randrange(len(styled.references)) for _ in range(self.size)]
        scenes = [styled.reference_scenes[index] for index in chosen]
        batch = self._batch(styled.reference_latents[chosen].float(), scenes, WORDLESS, tail_kind, rng, generator)
        batch.reference = styled.references[chosen]
        return batch

    def _batch(
        self,
        latent: Tensor,
        scenes: list[Scene],
        empty: float,
        tail_kind: tuple[bool, int],
        rng: random.Random,
        generator: torch.Generator,
    ) -> Batch:
        """Latents with captions of their scenes; `empty` is the share of those without a word."""
        texts, tails = [], []
        for scene in scenes:
            wordless = rng.random() < empty
            texts.append("" if wordless else caption(scene, rng))
            tails.append("" if wordless else tail(*tail_kind, rng))
        ids, padding, pooled = self.captions.encode(texts, tails, rng)
        rare = torch.randn(RARE, T5_WIDTH, generator=generator)
        return Batch(latent, ids, padding, pooled, rare, generator)
