"""What style references do to krea-mini's pictures, through our own workflows in a real ComfyUI."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from dev import small_model
from dev.host import ComfyHost

from .captions import article
from .evaluate import node_inputs, paint, share
from .judge import view
from .pictures import COLOURS, SHAPES, SQUARE, Scene, draw, random_scene, single_scene
from .style_judge import amounts, palette
from .styles import MOST, PLAIN, TREATMENTS, Style, random_style

STRENGTHS = tuple(step / 10 for step in range(11))
FAR = 60  # RGB distance from a wall to a palette at which the way can be measured


def referenced(
    host: ComfyHost, workflow: str, references: list[np.ndarray], prompt: str, seed: int, **style: Any
) -> np.ndarray:
    """The picture (HxWx3 uint8) that a workflow makes of a prompt and references; `style` changes the node's inputs."""
    graph = small_model.workflow(workflow)
    loaders = [node["inputs"] for node in graph.values() if node["class_type"] == "LoadImage"]
    for number, (loader, reference) in enumerate(zip(loaders, references, strict=True)):
        loader["image"] = f"reference_{number}.png"
        Image.fromarray(reference).save(host.input_dir / loader["image"])
    # Without a prompt there is no sentence about texture either.
    node_inputs(graph, "FluxKreaPrompt").update(prompt=prompt, texture_enhancement=bool(prompt))
    node_inputs(graph, "FluxKreaSampler")["seed"] = seed
    node_inputs(graph, "FluxKreaStyleReference").update(style)
    return paint(host, graph)


def _subjects(rng: random.Random) -> Iterator[tuple[str, Scene]]:
    """Prompts of one subject each, with their scenes.

    No black, in which an outline could not be seen, and no stars: they reach into the strips where style_judge looks at
    the wall alone.
    """
    while True:
        wall, colour = rng.sample([name for name in COLOURS if name != "black"], 2)
        scene = single_scene(SQUARE, wall, colour, rng.choice([kind for kind in SHAPES if kind != "star"]), rng)
        thing = article(f"{colour} {scene.shapes[0].kind}")
        yield f"{thing} on {article(wall)} background", scene


def _kinds(picture: np.ndarray) -> list[str | None]:
    return [shape.kind for shape in view(picture).shapes]


def _reference(style: Style, rng: random.Random) -> np.ndarray:
    return draw(replace(random_scene(rng, SQUARE), style=style))


def _palettes(rng: random.Random) -> Iterator[tuple[str, Scene, Style]]:
    """Subjects with a palette far from their own, in which their drawing is still judged right."""
    for prompt, scene in _subjects(rng):
        style = Style(tint=random_style(rng).tint, palette=1.0)
        tinted = draw(replace(scene, style=style))
        far = np.linalg.norm(palette(tinted) - palette(draw(scene))) > FAR
        if far and _kinds(tinted) == [scene.shapes[0].kind]:
            yield prompt, scene, style


def strength_curve(host: ComfyHost, count: int = 12) -> dict:
    """At each strength: how far the wall's colour is on its way to the reference's palette; is the subject right?

    Pull 0 is the picture without a reference, 1 the prompt's picture drawn in the reference's palette.
    """
    rng = random.Random("palettes")
    pulls: dict[float, list[float]] = {strength: [] for strength in STRENGTHS}
    right: dict[float, list[bool]] = {strength: [] for strength in STRENGTHS}
    for seed, (prompt, scene, style) in zip(range(700, 700 + count), _palettes(rng), strict=False):
        reference = _reference(style, rng)
        start = None
        for strength in STRENGTHS:
            picture = referenced(host, "style_reference", [reference], prompt, seed, strength=strength)
            wall = palette(picture)
            start = wall if start is None else start
            way = MOST["palette"] * (np.asarray(style.tint) - start)
            pulls[strength].append(float((wall - start) @ way / (way @ way)))
            right[strength].append(_kinds(picture) == [scene.shapes[0].kind])
    return {
        "pictures": count,
        "pull": {str(strength): round(float(np.mean(values)), 3) for strength, values in pulls.items()},
        "subject right": {str(strength): share(values) for strength, values in right.items()},
    }


def treatments(host: ComfyHost, count: int = 4, **style: Any) -> dict:
    """For references with one treatment each: its mean amount in the results, and in results of other references."""
    rng = random.Random("treatments")
    seen: dict[str, dict[str, list[float]]] = {}
    for treatment in TREATMENTS:
        look = replace(PLAIN, **{treatment: 1.0})
        rows = []
        for seed, (prompt, _) in zip(range(800, 800 + count), _subjects(rng), strict=False):
            rows.append(amounts(referenced(host, "style_reference", [_reference(look, rng)], prompt, seed, **style)))
        seen[treatment] = {name: [row[name] for row in rows] for name in TREATMENTS}
    return {
        treatment: {
            "own": round(float(np.mean(values[treatment])), 2),
            "without": round(float(np.mean([seen[other][treatment] for other in TREATMENTS if other != treatment])), 2),
        }
        for treatment, values in seen.items()
    }


def image_prompts(host: ComfyHost, count: int = 12) -> dict:
    """Without a word: how many results show the reference's subject, in its kind and colour, on its wall."""
    right = []
    rng = random.Random("image prompts")
    for seed in range(900, 900 + count):
        wall, colour = rng.sample(list(COLOURS), 2)
        scene = single_scene(SQUARE, wall, colour, rng.choice(SHAPES), rng)
        picture = referenced(host, "style_reference", [draw(scene)], "", seed, use_as="image prompt", strength=1.0)
        seen = view(picture)
        shapes = [(shape.colour, shape.kind) for shape in seen.shapes]
        right.append(shapes == [(colour, scene.shapes[0].kind)] and seen.background == wall)
    return {"pictures": count, "right": share(right)}
