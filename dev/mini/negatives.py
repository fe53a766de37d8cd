"""Negative prompts: the last stage of training, on the states that true CFG itself leads to.

v_neg + s * (v_pos - v_neg) of two good predictions need not be a good one. In the first steps, where nothing is
decided, it pushes away from the unwanted colour without looking where to: to a shape in the colour of its wall, which
is none. So the network samples under true CFG, and learns at each state what the step from there should have been.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from krea.schedule import flow_sigmas, shift_mu, token_count

from .autoencoder import LinearEncoder
from .captions import TAILS, article, tail
from .pictures import COLOURS, SHAPES, SIZES, draw, held_out, single_scene
from .text import RARE, T5_WIDTH

if TYPE_CHECKING:
    from .data import Captions
    from .network import Flux
    from .train import Model

PAIRS = 3  # of a prompt and a negative one, in a batch
STEPS = 28
# The steps at which the network is asked and learns; what lies between is left out. Colours are settled early on.
STATES = (0, 1, 2, 3, 4, 6, 9, 14)
SETTLED = 4  # the step at which it can be seen what colour would come without a negative prompt
TRUE_CFG = (1.5, 3.5)
GUIDANCE = (1.0, 8.0)
# How often the unwanted colour is the one that would come; else it is any.
COMING = 0.75
# Weight of what the prompt alone says at these states, which is to stay as it was.
ANCHOR = 0.5

Size = tuple[int, int]
Subject = tuple[str, str]  # kind and wall


class Negatives:
    """number -> the loss of a few pictures sampled with prompts that leave the colour open and negative ones."""

    def __init__(self, teacher: Model, captions: Captions, encoder: LinearEncoder):
        self.teacher, self.captions, self.encoder = teacher, captions, encoder
        self.rare = torch.zeros(RARE, T5_WIDTH)
        self.drawn: dict[tuple, Tensor] = {}

    def loss(self, student: Flux, number: int) -> Tensor:
        """Mean over the states x of |CFG(x) - v(x)|^2, in which v is the teacher's velocity towards a wanted colour.

        That colour is drawn at each state from those that are left, by how well they explain the state: in the mean
        over draws the target is the velocity of all pictures that obey both prompts.
        """
        rng = random.Random(f"negatives-{number}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        size = rng.choices(list(SIZES), list(SIZES.values()))[0]
        guidance = torch.full((PAIRS,), rng.uniform(*GUIDANCE))
        true_cfg = rng.uniform(*TRUE_CFG)
        subjects: list[Subject] = [(rng.choice(SHAPES), rng.choice(list(COLOURS))) for _ in range(PAIRS)]
        enhanced, sentences = rng.choices(list(TAILS), list(TAILS.values()))[0]
        tails = [tail(enhanced, sentences, rng) for _ in subjects]
        x = torch.randn(PAIRS, 16, size[1] // 8, size[0] // 8, generator=generator)
        sigmas = flow_sigmas(STEPS, shift_mu(token_count(size[1] // 8, size[0] // 8))).float()

        prompt = self._read(_on_walls([kind for kind, _ in subjects], subjects), tails)
        unwanted = self._unwanted(size, subjects, x, sigmas, prompt, guidance, rng)
        negative = self._read([_named(kind, colour, rng) for (kind, _), colour in zip(subjects, unwanted, strict=True)])
        left = [
            [c for c in COLOURS if c not in (wall, bad) and not held_out(c, kind, wall)]
            for (kind, wall), bad in zip(subjects, unwanted, strict=True)
        ]
        total = torch.zeros(())
        for here, there in zip(STATES, (*STATES[1:], STEPS), strict=True):
            sigma = sigmas[here].expand(PAIRS)
            likely = self._likelihoods(size, subjects, left, x, float(sigma[0]))
            wanted = [
                names[int(torch.multinomial(row.softmax(0), 1, generator=generator))]
                for names, row in zip(left, likely, strict=True)
            ]
            things = [f"{colour} {kind}" for (kind, _), colour in zip(subjects, wanted, strict=True)]
            with torch.no_grad():
                target = self.teacher.flux(x, sigma, *self._read(_on_walls(things, subjects), tails), guidance)
                alone = self.teacher.flux(x, sigma, *prompt, guidance)
            positive = student(x, sigma, *prompt, guidance)
            velocity = positive + (true_cfg - 1) * (positive - student(x, sigma, *negative, guidance))
            total = total + F.mse_loss(velocity, target) + ANCHOR * F.mse_loss(positive, alone)
            x = (x + (sigmas[there] - sigmas[here]) * velocity).detach()
        return total / len(STATES)

    def _read(self, texts: list[str], tails: list[str] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What Flux takes of texts: the T5's tokens, the pooled ones, the padding."""
        ids, padding, pooled = self.captions.encode(texts, tails or [""] * len(texts))
        with torch.no_grad():
            return self.teacher.t5(ids, self.rare), pooled, padding

    def _unwanted(
        self,
        size: Size,
        subjects: list[Subject],
        x: Tensor,
        sigmas: Tensor,
        prompt: tuple[Tensor, Tensor, Tensor],
        guidance: Tensor,
        rng: random.Random,
    ) -> list[str]:
        """A colour for each picture to be without: mostly the one that comes from this noise by itself."""
        for here, there in zip(sigmas[:SETTLED], sigmas[1:], strict=False):
            with torch.no_grad():
                x = x + (there - here) * self.teacher.flux(x, here.expand(len(x)), *prompt, guidance)
        others = [[colour for colour in COLOURS if colour != wall] for _, wall in subjects]
        likely = self._likelihoods(size, subjects, others, x, float(sigmas[SETTLED]))
        return [
            names[int(row.argmax())] if rng.random() < COMING else rng.choice(names)
            for names, row in zip(others, likely, strict=True)
        ]

    def _likelihoods(
        self, size: Size, subjects: list[Subject], colours: list[list[str]], x: Tensor, sigma: float
    ) -> list[Tensor]:
        """For each state its log likelihoods, up to a constant, as a noisy picture of the subject in those colours.

        x = (1 - sigma) * picture + sigma * noise, so they are -|x - (1 - sigma) * picture|^2 / (2 sigma^2).
        """
        rows = []
        for own, (kind, wall), names in zip(x, subjects, colours, strict=True):
            pictures = torch.stack([self._latent(size, wall, colour, kind) for colour in names])
            rows.append(-(own - (1 - sigma) * pictures).square().sum((1, 2, 3)) / (2 * sigma * sigma))
        return rows

    def _latent(self, size: Size, *scene: str) -> Tensor:
        """16xhxw of a scene without chance: wall, colour and kind of its one shape."""
        if (size, scene) not in self.drawn:
            plain = single_scene(size, *scene, random.Random(0))
            picture = draw(replace(plain, light=(0.0, 0.0), tint=(0.0, 0.0, 0.0)))
            self.drawn[size, scene] = torch.from_numpy(self.encoder(picture))
        return self.drawn[size, scene]


def _on_walls(things: list[str], subjects: list[Subject]) -> list[str]:
    walls = [wall for _, wall in subjects]
    return [f"{article(thing)} on {article(wall)} background" for thing, wall in zip(things, walls, strict=True)]


def _named(kind: str, colour: str, rng: random.Random) -> str:
    """A negative prompt: the colour alone, or with what it is the colour of."""
    thing = f"{colour} {kind}"
    return rng.choices((colour, article(thing), thing, f"{colour} shape"), (0.6, 0.25, 0.05, 0.1))[0]
