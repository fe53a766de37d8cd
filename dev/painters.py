"""The pictures of the project, painted by krea-mini through the shipped workflows: thumbnails, README.md, docs/."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dev import small_model
from dev.client import images_of
from dev.host import ComfyHost
from dev.mini.evaluate import node_inputs, paint
from dev.mini.evaluate_style import referenced
from dev.mini.pictures import SQUARE, draw, single_scene
from dev.mini.styles import Style

THUMBNAIL = 400  # px
IMAGE_PROMPTS = (("yellow", "red", "circle"), ("white", "green", "star"))  # wall, colour, kind
DUSK, LEAF, SAND = (66.0, 48.0, 140.0), (40.0, 150.0, 110.0), (228.0, 180.0, 120.0)


def run(host: ComfyHost, workflow: str, **changes: Any) -> np.ndarray:
    """The picture (HxWx3 uint8) that a shipped workflow makes; ``changes`` are widget values, by name."""
    graph = small_model.workflow(workflow)
    for node in graph.values():
        inputs = node["inputs"]  # a list in it is a link
        inputs.update({name: new for name, new in changes.items() if not isinstance(inputs.get(name, []), list)})
    return paint(host, graph)


def reference(wall: str, colour: str, kind: str, **style: Any) -> np.ndarray:
    """A drawn picture in a style, square."""
    return draw(replace(single_scene(SQUARE, wall, colour, kind, random.Random(7)), style=Style(**style)))


def violet() -> np.ndarray:
    """A reference in the colours of dusk."""
    return reference("white", "black", "square", tint=DUSK, palette=1.0)


def green() -> np.ndarray:
    """A reference in the colours of leaves."""
    return reference("blue", "red", "circle", tint=LEAF, palette=1.0)


def sandy() -> np.ndarray:
    """A reference in the colours of sand."""
    return reference("orange", "purple", "triangle", tint=SAND, palette=1.0)


def _sheet(rows: Iterable[Iterable[np.ndarray]], side: int, gap: int = 2) -> Image.Image:
    """Pictures in rows, each `side` px square."""
    grid = [list(row) for row in rows]
    width, height = (count * (side + gap) - gap for count in (len(grid[0]), len(grid)))
    sheet = Image.new("RGB", (width, height), "white")
    for y, row in enumerate(grid):
        for x, picture in enumerate(row):
            small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (x * (side + gap), y * (side + gap)))
    return sheet


def _text_to_image(host: ComfyHost) -> Image.Image:
    """Four pictures, two by two."""
    prompts = (
        "a red circle on a blue background",
        "a yellow star on a purple background",
        "a green triangle to the left of an orange square on a white background",
        "a white circle above a black square on a red background",
    )
    pictures = [run(host, "text_to_image", prompt=prompt, seed=1) for prompt in prompts]
    return _sheet([pictures[:2], pictures[2:]], THUMBNAIL // 2 - 1)


def _image_to_image(host: ComfyHost) -> Image.Image:
    """The input picture in the left half, the new one in the right."""
    before = run(host, "text_to_image", prompt="a red circle on a white background", seed=1)
    Image.fromarray(before).save(host.input_dir / "before.png")
    prompt = "a green circle on a yellow background"
    after = run(host, "image_to_image", prompt=prompt, image="before.png", seed=1)
    half = before.shape[1] // 2
    both = np.concatenate((before[:, : half - 1], np.full_like(before[:, :2], 255), after[:, half + 1 :]), 1)
    return Image.fromarray(both).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)


def _style_reference(host: ComfyHost) -> Image.Image:
    """The reference at the top left, and three pictures in its style."""
    prompts = (
        "a red circle on a yellow background",
        "a white star on a blue background",
        "a green triangle to the left of an orange square on a white background",
    )
    look = green()
    results = [referenced(host, "style_reference", [look], prompt, 1, strength=1.0) for prompt in prompts]
    return _sheet([[look, results[0]], results[1:]], THUMBNAIL // 2 - 1)


def _style_mix(host: ComfyHost) -> Image.Image:
    """Three references in a column, and beside them the picture in a mix of their styles."""
    looks = [violet(), green(), sandy()]
    result = referenced(host, "style_mix", looks, "a white star on a blue background", 1, strength=1.0)
    sheet = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    sheet.paste(_sheet([[look] for look in looks], 132), (0, 0))
    sheet.paste(Image.fromarray(result).resize((266, 266), Image.Resampling.LANCZOS), (134, 67))
    return sheet


def _image_prompt(host: ComfyHost) -> Image.Image:
    """Two pictures at the top, and what is painted after each of them without a word below."""
    shown = [draw(single_scene(SQUARE, *words, random.Random(3))) for words in IMAGE_PROMPTS]
    results = [referenced(host, "image_prompt", [picture], "", 1) for picture in shown]
    return _sheet([shown, results], THUMBNAIL // 2 - 1)


def _moderated_batch(host: ComfyHost) -> Image.Image:
    """The four pictures of a batch."""
    graph = small_model.workflow("moderated_batch")
    node_inputs(graph, "FluxKreaPromptFilter")["prompt"] = "a star on a white background"
    node_inputs(graph, "FluxKreaSampler")["seed"] = 1
    files = [host.view(image) for image in images_of(host.run(graph))]
    pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
    return _sheet([pictures[:2], pictures[2:]], THUMBNAIL // 2 - 1)


def _readme(host: ComfyHost) -> Image.Image:
    """Eight pictures of seed 1 in two rows, each over its prompt."""
    prompts = (
        ("a red circle", "on a blue background"),
        ("a yellow star", "on a purple background"),
        ("a large green triangle", "on a white background"),
        ("a white square", "on an orange background"),
        ("a blue square above an orange circle", "on a white background"),
        ("a yellow triangle to the left of a red square", "on a black background"),
        ("a purple circle below a green square", "on a yellow background"),
        ("an orange triangle to the right of a white circle", "on a blue background"),
    )
    side, caption, gap = 256, 34, 8
    sheet = Image.new("RGB", (4 * (side + gap) - gap, 2 * (side + caption + gap) - gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, lines in enumerate(prompts):
        x, y = index % 4 * (side + gap), index // 4 * (side + caption + gap)
        sheet.paste(Image.fromarray(run(host, "text_to_image", prompt=" ".join(lines), seed=1)), (x, y))
        pen.text((x, y + side + 2), "\n".join(lines), fill="black", font=font)
    return sheet


def _style_references(host: ComfyHost) -> Image.Image:
    """Three rows: strength from 0 to 1; weights of two references from one to the other; detail from 1 to all."""
    prompt, steps = "a red circle on a yellow background", [step / 5 for step in range(6)]
    first, second = violet(), green()

    def mixed(share: float) -> np.ndarray:
        weights = {"weight_1": 1 - share, "weight_2": share, "weight_3": 0.0}
        return referenced(host, "style_mix", [first, second, first], prompt, 1, strength=1.0, **weights)

    def worth(detail: int) -> np.ndarray:
        return referenced(host, "style_reference", [second], prompt, 1, use_as="custom", strength=1.0, detail=detail)

    strengths = [referenced(host, "style_reference", [first], prompt, 1, strength=strength) for strength in steps]
    return _sheet([strengths, map(mixed, steps), map(worth, (1, 2, 3, 5, 9, 12))], 150, 4)


THUMBNAILS: dict[str, Callable[[ComfyHost], Image.Image]] = {
    "text_to_image": _text_to_image,
    "image_to_image": _image_to_image,
    "style_reference": _style_reference,
    "style_mix": _style_mix,
    "image_prompt": _image_prompt,
    "moderated_batch": _moderated_batch,
}
"""Workflow -> how its thumbnail is painted, 400 px square."""
DOCS: dict[str, Callable[[ComfyHost], Image.Image]] = {"krea_mini": _readme, "style_references": _style_references}
"""Picture in docs/ -> how it is painted."""
