"""Negative prompts: the last stage of training, on the states that true CFG itself leads to.

v_neg + s * (v_pos - v_neg) of two good predictions need not be a good one. In the first steps, where nothing is
decided, it pushes away from the unwanted colour without looking where to: to a shape in the colour of its wall, which
is none. So the network samples under true CFG, and learns at each state what the step from there should have been.
"""

from __future__ import annotations

import math
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
# The steps at which the network is asked; what lies between is left out.
STATES = (0, 1, 2, 3, 4, 5, 7, 10, 14, 20)
SETTLED = 4  # the step at which it can be seen what colour would come without a negative prompt
# From here on colours hardly change, and the network learns only half of the time, with twice the weight.
LATE = 7
# Narrow, since the best v_neg is another one for each scale. It works beyond the upper end, too.
TRUE_CFG = (2.0, 3.0)
GUIDANCE = (1.0, 8.0)
# How often the unwanted colour is the one that would come; else it is any.
COMING = 0.75
# Least distance (0..441) of a wanted colour from the wall's and the unwanted one: orange is no escape from red.
APART = 100
# In so many of the states the prompt alone is asked to stay as it was, with this weight.
ANCHORED = 2
ANCHOR = 2.5

Size = tuple[int, int]
Subject = tuple[str, str]  # kind and wall


class Negatives:
    """number -> the loss of a few pictures sampled with prompts that leave the colour open and negative ones."""

    def __init__(self, teacher: Model, captions: Captions, encoder: LinearEncoder):
        self.teacher, self.captions, self.encoder = teacher, captions, encoder
        self.rare = torch.zeros(RARE, T5_WIDTH)
        self.drawn: dict[tuple, Tensor] = {}

    def loss(self, student: Flux, number: int) -> Tensor:
        """Mean over the states x of |CFG(x) - v(x)|^2; v is the velocity to all pictures that obey both prompts.

        In the formula of true CFG the prompt's velocity is the teacher's, so that the negative prompt's has to learn.
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
            [c for c in COLOURS if _apart(c, wall) and _apart(c, bad) and not held_out(c, kind, wall)]
            for (kind, wall), bad in zip(subjects, unwanted, strict=True)
        ]
        drawings = self._drawings(size, subjects, left)
        anchored = rng.sample(STATES, ANCHORED)
        total = torch.zeros(())
        for here, there in zip(STATES, (*STATES[1:], STEPS), strict=True):
            sigma = sigmas[here].expand(PAIRS)
            learns = here < LATE or rng.random() < 0.5
            shares = [row.softmax(0) for row in likelihoods(x, drawings, float(sigmas[here]))]
            target = self._towards(x, sigma, guidance, subjects, tails, left, drawings, shares, generator)
            with torch.no_grad():
                alone = self.teacher.flux(x, sigma, *prompt, guidance)
            with torch.set_grad_enabled(learns):
                unwelcome = student(x, sigma, *negative, guidance)
            velocity = alone + (true_cfg - 1) * (alone - unwelcome)
            if learns:
                total = total + (1 if here < LATE else 2) * F.mse_loss(velocity, target)
            if here in anchored:
                total = total + ANCHOR * F.mse_loss(student(x, sigma, *prompt, guidance), alone)
            x = (x + (sigmas[there] - sigmas[here]) * velocity).detach()
        return total / len(STATES)

    def _towards(
        self,
        x: Tensor,
        sigma: Tensor,
        guidance: Tensor,
        subjects: list[Subject],
        tails: list[str],
        colours: list[list[str]],
        drawings: list[Tensor],
        shares: list[Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """The velocity towards the mean of all colours, each with its share.

        The teacher is asked for one colour, drawn by its share. The others differ from it by what they differ in as
        plain drawings, over sigma (a control variate): early on that takes most of the chance out of the draw.
        """
        drawn = [int(torch.multinomial(share, 1, generator=generator)) for share in shares]
        things = [f"{names[index]} {kind}" for (kind, _), names, index in zip(subjects, colours, drawn, strict=True)]
        others = [
            pictures[index] - torch.tensordot(share, pictures, 1)
            for pictures, index, share in zip(drawings, drawn, shares, strict=True)
        ]
        with torch.no_grad():
            one = self.teacher.flux(x, sigma, *self._read(_on_walls(things, subjects), tails), guidance)
        return one + torch.stack(others) / sigma.view(-1, 1, 1, 1)

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
        likely = likelihoods(x, self._drawings(size, subjects, others), float(sigmas[SETTLED]))
        return [
            names[int(row.argmax())] if rng.random() < COMING else rng.choice(names)
            for names, row in zip(others, likely, strict=True)
        ]

    def _drawings(self, size: Size, subjects: list[Subject], colours: list[list[str]]) -> list[Tensor]:
        """For each subject its plain pictures in so many colours, Nx16xhxw."""
        return [
            torch.stack([self._latent(size, wall, colour, kind) for colour in names])
            for (kind, wall), names in zip(subjects, colours, strict=True)
        ]

    def _latent(self, size: Size, *scene: str) -> Tensor:
        """16xhxw of a scene without chance: wall, colour and kind of its one shape."""
        if (size, scene) not in self.drawn:
            plain = single_scene(size, *scene, random.Random(0))
            picture = draw(replace(plain, light=(0.0, 0.0), tint=(0.0, 0.0, 0.0)))
            self.drawn[size, scene] = torch.from_numpy(self.encoder(picture))
        return self.drawn[size, scene]


def likelihoods(x: Tensor, drawings: list[Tensor], sigma: float) -> list[Tensor]:
    """For each state of Bx16xhxw its log likelihoods, up to a constant, as a noisy one of its pictures (Nx16xhxw).

    x = (1 - sigma) * picture + sigma * noise, so they are -|x - (1 - sigma) * picture|^2 / (2 sigma^2).
    """
    return [
        -(own - (1 - sigma) * pictures).square().sum((1, 2, 3)) / (2 * sigma * sigma)
        for own, pictures in zip(x, drawings, strict=True)
    ]


def _apart(colour: str, other: str) -> bool:
    return math.dist(COLOURS[colour], COLOURS[other]) > APART


def _on_walls(things: list[str], subjects: list[Subject]) -> list[str]:
    walls = [wall for _, wall in subjects]
    return [f"{article(thing)} on {article(wall)} background" for thing, wall in zip(things, walls, strict=True)]


def _named(kind: str, colour: str, rng: random.Random) -> str:
    """A negative prompt: the colour alone, or with what it is the colour of."""
    thing = f"{colour} {kind}"
    return rng.choices((colour, article(thing), thing, f"{colour} shape"), (0.55, 0.3, 0.05, 0.1))[0]
