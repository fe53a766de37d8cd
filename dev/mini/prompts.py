"""The held-out prompts: every one asks for a (colour, shape, background) combination that training never drew."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .pictures import COLOURS, OPPOSITE, SHAPES, held_out_combinations

RATIOS = ("1:1", "3:2", "2:3")
SINGLE = (
    "a {thing} on a {wall} background",
    "A photo of a {thing} on a {wall} background.",
    "{thing}, {wall} background, soft natural light, sharp focus",
    "a {wall} background with a {thing} in the centre",
    "there is a {thing} in front of a {wall} wall",
)
PAIR = (
    "a {one} {relation} a {other} on a {wall} background",
    "A photo of a {one} {relation} a {other} on a {wall} background.",
    "a {wall} background with a {one} {relation} a {other}",
)
RELATIONS = {"above": "above", "below": "below", "left": "to the left of", "right": "to the right of"}


@dataclass(frozen=True)
class Prompt:
    """A prompt and what must be seen: objects as (colour, kind), the first `relation` the second."""

    text: str
    ratio: str
    background: str
    objects: tuple[tuple[str, str], ...]
    relation: str | None = None


def _write(template: str, **words: str) -> str:
    text = template.format(**words)
    for colour in COLOURS:
        if colour[0] in "aeiou":
            text = text.replace(f"a {colour}", f"an {colour}")
    return text


def held_out_prompts(singles: int = 36, pairs: int = 36, seed: int = 2026) -> list[Prompt]:
    """Prompts of one subject and of two, the three aspect ratios and all templates in equal parts."""
    rng = random.Random(seed)
    combinations = held_out_combinations()
    rng.shuffle(combinations)
    prompts = []
    for index in range(singles):
        colour, kind, wall = combinations[index % len(combinations)]
        text = _write(SINGLE[index % len(SINGLE)], thing=f"{colour} {kind}", wall=wall)
        prompts.append(Prompt(text, RATIOS[index % 3], wall, ((colour, kind),)))
    for index in range(pairs):
        colour, kind, wall = combinations[-1 - index % len(combinations)]
        other = rng.choice([name for name in COLOURS if name not in (colour, wall)])
        objects = ((colour, kind), (other, rng.choice(SHAPES)))
        objects = objects if rng.random() < 0.5 else objects[::-1]
        relation = list(OPPOSITE)[index // 3 % 4]
        words = {"one": " ".join(objects[0]), "other": " ".join(objects[1]), "wall": wall}
        text = _write(PAIR[index // 12 % len(PAIR)], relation=RELATIONS[relation], **words)
        prompts.append(Prompt(text, RATIOS[index % 3], wall, objects, relation))
    return prompts
