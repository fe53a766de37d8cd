"""How well krea-mini follows held-out prompts, through our own workflow in a real ComfyUI."""

from __future__ import annotations

import io
import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dev import small_model
from dev.client import ComfyClient, Graph, images_of

from .captions import article
from .judge import judge, view
from .pictures import SHAPES, draw, random_scene
from .prompts import Prompt

GUIDANCE = (1.0, 4.5, 8.0)
NEGATIVE_TRUE_CFG = 2.5
NEGATIVE_SEEDS = 3
NEGATIVE_WALLS = ("white", "blue", "yellow")
AUTOENCODER_PICTURES = 24


def node_inputs(graph: Graph, kind: str) -> dict[str, Any]:
    """The inputs of a graph's first node of a kind."""
    return next(node["inputs"] for node in graph.values() if node["class_type"] == kind)


def paint(client: ComfyClient, graph: Graph) -> np.ndarray:
    """The picture (HxWx3 uint8) of a graph."""
    data = client.view(images_of(client.run(graph))[0])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def generate(client: ComfyClient, prompt: Prompt, seed: int, negative: str = "", **sampler: float) -> np.ndarray:
    """The picture (HxWx3 uint8) that text_to_image makes of a prompt; `sampler` changes inputs of the sampler node."""
    graph = small_model.workflow("text_to_image")
    node_inputs(graph, "FluxKreaPrompt").update(prompt=prompt.text, negative_prompt=negative)
    size = {"aspect_ratio": "1:1" if prompt.ratio == "1:1" else "3:2", "swap_sides": prompt.ratio == "2:3"}
    node_inputs(graph, "FluxKreaAspectRatioLatent").update(size)
    node_inputs(graph, "FluxKreaSampler").update(seed=seed, **sampler)
    return paint(client, graph)


def share(values: list[bool]) -> float:
    """How many of the values are true, 0..1."""
    return round(sum(values) / len(values), 3) if values else math.nan


def following(client: ComfyClient, prompts: list[Prompt], sheet: Path | None = None, **sampler: float) -> dict:
    """Shares of prompts whose background, colours, shapes and relation came true, and how clean the shapes are."""
    pictures = [generate(client, prompt, 1000 + index, **sampler) for index, prompt in enumerate(prompts)]
    verdicts = [
        judge(picture, prompt.background, prompt.objects, prompt.relation)
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]
    report: dict[str, Any] = {}
    for name, count in (("one subject", 1), ("two subjects", 2)):
        chosen = [verdict for verdict, prompt in zip(verdicts, prompts, strict=True) if len(prompt.objects) == count]
        if chosen:
            parts = ("background", "colours", "shapes", "all") + (("relation",) if count == 2 else ())
            report[name] = {"prompts": len(chosen)}
            report[name] |= {part: share([bool(getattr(verdict, part)) for verdict in chosen]) for part in parts}
    for ratio in sorted({prompt.ratio for prompt in prompts}):
        report[ratio] = share([v.all for v, prompt in zip(verdicts, prompts, strict=True) if prompt.ratio == ratio])
    shapes = [shape for picture in pictures for shape in view(picture).shapes]
    report["overlap"] = round(float(np.mean([shape.overlap for shape in shapes])), 3) if shapes else 0.0
    report["purity"] = round(float(np.mean([shape.purity for shape in shapes])), 3) if shapes else 0.0
    if sheet:
        draw_sheet(sheet, pictures, [prompt.text for prompt in prompts], [verdict.all for verdict in verdicts])
    return report


def guidance_effect(client: ComfyClient, prompts: list[Prompt]) -> dict:
    """Contrast (standard deviation of all values in 0..255) at each guidance, the same seeds throughout."""
    contrasts = {
        guidance: [
            float(generate(client, prompt, 1000 + index, guidance=guidance).std())
            for index, prompt in enumerate(prompts)
        ]
        for guidance in GUIDANCE
    }
    least, most = (contrasts[guidance] for guidance in (min(GUIDANCE), max(GUIDANCE)))
    return {
        "prompts": len(prompts),
        "contrast": {str(guidance): round(float(np.mean(values)), 2) for guidance, values in contrasts.items()},
        "more contrast at the highest": share([more > less for less, more in zip(least, most, strict=True)]),
    }


def negative_prompt(client: ComfyClient, seeds: int = NEGATIVE_SEEDS) -> dict:
    """Prompts that leave the colour open: does naming the colour that came in the negative prompt remove it?

    For each picture that shows its subject without a negative prompt, the same seed with one that names the shape with
    its colour, and with the colour alone. The subject is kept where one shape is there, and of the right kind.
    """
    rows = []
    for kind, wall in itertools.product(SHAPES, NEGATIVE_WALLS):
        prompt = Prompt(f"a {kind} on a {wall} background", "1:1", wall, (("", kind),))
        for seed in range(500, 500 + seeds):
            plain = view(generate(client, prompt, seed)).shapes
            if [shape.kind for shape in plain] != [kind]:
                continue
            colour = plain[0].colour
            for negative in (article(f"{colour} {kind}"), colour):
                after = view(generate(client, prompt, seed, negative, true_cfg=NEGATIVE_TRUE_CFG)).shapes
                rows.append((all(shape.colour != colour for shape in after), [shape.kind for shape in after] == [kind]))
    return {
        "pictures": len(rows),
        "colour removed": share([removed for removed, _ in rows]),
        "subject kept": share([kept for _, kept in rows]),
        "both": share([removed and kept for removed, kept in rows]),
    }


def autoencoder(client: ComfyClient, input_dir: Path, vae: str, count: int = AUTOENCODER_PICTURES) -> dict:
    """PSNR in dB of encoding and decoding drawn pictures that training did not see."""
    rng = random.Random("unseen pictures")
    decibels = []
    for index in range(count):
        picture = draw(random_scene(rng))
        name = f"unseen_{index}.png"
        Image.fromarray(picture).save(input_dir / name)
        graph = {
            "1": {"class_type": "LoadImage", "inputs": {"image": name}},
            "2": {"class_type": "VAELoader", "inputs": {"vae_name": vae}},
            "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["2", 0]}},
            "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["2", 0]}},
            "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "unseen"}},
        }
        error = (paint(client, graph).astype(float) - picture) / 255
        decibels.append(-10 * math.log10(np.square(error).mean()))
    return {"pictures": count, "mean dB": round(float(np.mean(decibels)), 2), "least dB": round(min(decibels), 2)}


def draw_sheet(path: Path, pictures: list[np.ndarray], texts: list[str], right: list[bool]) -> None:
    """All pictures with their prompts, wrong ones in red."""
    width, height, columns = 200, 240, 9
    sheet = Image.new("RGB", (width * columns, height * -(-len(pictures) // columns)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = index % columns * width, index // columns * height
        small = Image.fromarray(picture)
        small.thumbnail((width - 8, width - 8))
        sheet.paste(small, (left, top))
        lines = "\n".join(text[start : start + 32] for start in range(0, len(text), 32))
        pen.text((left, top + width - 8), lines, "black" if right[index] else "red")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
