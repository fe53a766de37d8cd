"""Captions of scenes: what a prompt says about the picture, and the words round it that say nothing."""

from __future__ import annotations

import random

from krea.prompting import CHOICES, TEXTURE_ENHANCEMENT

from .pictures import OPPOSITE, Scene

COLOUR_SYNONYMS = {"red": "crimson", "green": "emerald", "blue": "azure", "yellow": "golden", "purple": "violet"}
SHAPE_SYNONYMS = {"circle": ("disc", "dot", "ball"), "square": ("box", "block"), "triangle": ("pyramid",)}
SIZE_SYNONYMS = {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big", "huge")}
PLACE_WORDS = {
    "centre": ("in the centre", "in the middle", "in the center"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
RELATION_WORDS = {
    "above": ("above", "above", "over", "on top of"),
    "below": ("below", "below", "under", "beneath", "underneath"),
    "left": ("to the left of", "to the left of", "left of"),
    "right": ("to the right of", "to the right of", "right of"),
}
PREFIXES = (
    "a photo of ", "a photo of ", "a photograph of ", "an illustration of ", "a picture of ", "an image of ",
    "a drawing of ", "a studio photograph of ", "a photo showing ", "a close-up of ", "there is ", "a painting of ",
)  # fmt: skip
TAGS = (
    "highly detailed", "soft natural light", "shot on 35mm film", "cinematic lighting", "sharp focus",
    "studio lighting",
    "minimalist composition", "flat design", "shallow depth of field", "film grain", "professional photography",
    "crisp edges", "centered composition", "calm mood", "no text", "realistic texture", "high quality", "8k",
)  # fmt: skip
SENTENCES = (
    "The image shows realistic textures and natural light, with an authentic, unprocessed look.",
    "The scene is lit by soft window light and has a quiet, calm atmosphere.",
    "The composition is simple and clean, with smooth surfaces and crisp edges.",
    "It looks like an editorial photograph from a design magazine.",
    "Every detail is sharp, and nothing else is visible in the frame.",
    "The picture was taken with a 50mm lens at f/2.8 in the late afternoon.",
    "The mood is modern and minimal.",
    "Photographed on Kodak Portra 400 film with gentle grain.",
    "It was captured on black and white film with deep contrast.",
    "The colours are natural and the highlights are not clipped.",
    *(sentence for choices in CHOICES.values() for sentence in choices.values()),
)


def article(words: str) -> str:
    """Words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _colour(name: str, rng: random.Random) -> str:
    return COLOUR_SYNONYMS[name] if name in COLOUR_SYNONYMS and rng.random() < 0.06 else name


def _shape(kind: str, rng: random.Random) -> str:
    return rng.choice(SHAPE_SYNONYMS[kind]) if kind in SHAPE_SYNONYMS and rng.random() < 0.1 else kind


def _single(scene: Scene, rng: random.Random) -> str:
    shape = scene.shapes[0]
    colour, kind = _colour(shape.colour, rng), _shape(shape.kind, rng)
    wall = f"{_colour(scene.background, rng)} {rng.choices(('background', 'backdrop', 'wall'), (0.86, 0.07, 0.07))[0]}"
    thing = f"{colour} {kind}"
    if scene.size_word:
        thing = f"{rng.choice(SIZE_SYNONYMS[scene.size_word])} {thing}"
    if scene.place != "centre" or rng.random() < 0.15:
        thing = f"{thing} {rng.choice(PLACE_WORDS[scene.place])}"
    draw = rng.random()
    if draw < 0.14:  # captions that leave the colour open: a negative prompt acts on them
        return f"{article(kind)} {rng.choice(('on', 'on', 'against'))} {article(wall)}"
    if draw < 0.26:  # the words a negative prompt is made of
        few = (
            colour,
            colour,
            thing,
            thing,
            article(thing),
            article(thing),
            kind,
            article(kind),
            wall,
            article(wall),
        )
        return rng.choice((*few, f"{colour} shape", f"{article(colour)} shape on {article(wall)}"))
    if draw < 0.72:
        return f"{article(thing)} {rng.choice(('on', 'on', 'on', 'against', 'in front of'))} {article(wall)}"
    if draw < 0.82:
        return f"{thing} on {wall}" if draw < 0.77 else f"{thing}, {wall}"
    return f"{article(wall)} with {article(thing)}"


def _pair(scene: Scene, rng: random.Random) -> str:
    first, second = scene.shapes
    relation = scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    wall = f"{_colour(scene.background, rng)} {rng.choices(('background', 'backdrop', 'wall'), (0.9, 0.05, 0.05))[0]}"
    one, other = (f"{_colour(shape.colour, rng)} {_shape(shape.kind, rng)}" for shape in (first, second))
    words = rng.choices(("", "is ", "placed "), (0.84, 0.08, 0.08))[0] + rng.choice(RELATION_WORDS[relation])
    draw = rng.random()
    if draw < 0.03:
        return f"{article(one)} and {article(other)} on {article(wall)}"
    if draw < 0.78:
        return f"{article(one)} {words} {article(other)} {rng.choice(('on', 'on', 'against'))} {article(wall)}"
    if draw < 0.86:
        return f"{one} {words} {other}, {wall}"
    return f"{article(wall)} with {article(one)} {words} {article(other)}"


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many true captions of a scene."""
    text = _pair(scene, rng) if scene.relation else _single(scene, rng)
    if rng.random() < 0.3:
        text = rng.choice(PREFIXES) + text
    return text[0].upper() + text[1:] if rng.random() < 0.25 else text


def plain_caption(scene: Scene) -> str:
    """The caption that says all about a scene and no more."""
    things = [f"{shape.colour} {shape.kind}" for shape in scene.shapes]
    wall = article(f"{scene.background} background")
    if scene.relation:
        return f"{article(things[0])} {RELATION_WORDS[scene.relation][0]} {article(things[1])} on {wall}"
    size = scene.size_word and f"{scene.size_word} "
    place = "" if scene.place == "centre" else f" {PLACE_WORDS[scene.place][0]}"
    return f"{article(size + things[0])}{place} on {wall}"


# What follows the captions of a batch, and how often: nothing or a few tags; the prompt node's texture enhancement
# with so many sentences before it; so many sentences alone.
TAILS = {(False, 0): 0.42, (True, 0): 0.34, (False, 1): 0.08, (False, 2): 0.04, (True, 1): 0.08, (True, 2): 0.04}


def tail(enhanced: bool, sentences: int, rng: random.Random) -> str:
    """Words that follow a caption and say nothing about the scene."""
    if not enhanced and not sentences:
        draw = rng.random()
        if draw < 0.6:
            return "." if draw < 0.2 else ""
        return ", " + ", ".join(rng.sample(TAGS, rng.randint(1, 3)))
    parts = rng.sample(SENTENCES, sentences) + [TEXTURE_ENHANCEMENT] * enhanced
    return ". " + " ".join(parts)
