"""What the gate costs: its judges against the flow of Black Forest Labs' own filter, and the whole of it in a graph.

That flow is Falconsai's ViT through transformers' pipeline, on the whole of one picture; and then Pixtral, which
generates one word, yes or no, one question and one picture after the other. Both sides have the same random weights.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dev import small_model
from dev.client import Graph
from dev.host import ComfyHost
from dev.small_language_models import save_pixtral
from krea.filters.image_judges import prepare, reduced, vit_nsfw
from krea.filters.language_judge import AREA, LONGEST
from krea.filters.questions import PICTURE_QUESTIONS, about_picture
from krea.filters.transformers_model import TransformersModel

from .text_to_image import timed

SIDE, BATCH = 1024, 4  # px, pictures
PIXTRAL = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_hidden_layers": 6}
Check = Callable[[torch.Tensor], object]


def report(rounds: int = 5) -> str:
    """Each judge for one picture and for a batch of four, and its reference, turn by turn."""
    coarse = torch.rand(BATCH, 3, SIDE // 32, SIDE // 32, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear").movedim(1, -1)
    lines = [f"content filter against Black Forest Labs' flow, {SIDE}x{SIDE} px, {rounds} rounds:"]
    with tempfile.TemporaryDirectory() as folder:
        checks = _vit(Path(folder) / "vit") | _language(Path(folder) / "pixtral")
        for name, (ours, theirs) in checks.items():
            for batch in (images[:1], images):
                seconds = np.array([[_seconds(check, batch) for check in (ours, theirs)] for _ in range(rounds + 1)])
                own, other = np.median(seconds[1:], 0)  # the first round warms up
                ratio = np.median(seconds[1:, 0] / seconds[1:, 1])
                lines.append(f"  {name}, {len(batch)} at a time: {own:.3f} s, theirs {other:.3f} s: ratio {ratio:.2f}")
    return "\n".join(lines)


def graph_report(host: ComfyHost, rounds: int = 2) -> str:
    """The gate and the saving of pictures that ComfyUI has just made, against the making of them."""
    lines = [f"the gate (Open NSFW) and saving in the shipped graph, small model, {SIDE}x{SIDE} px, {rounds} rounds:"]
    for batch in (1, BATCH):
        making, gate = [], []
        for number in range(rounds + 1):
            making.append(timed(host, _graph(number, batch, gate=False)).seconds)
            gate.append(timed(host, _graph(number, batch, gate=True)).seconds)  # the pictures are in ComfyUI's cache
        ratio = np.median(np.divide(gate[1:], making[1:]))
        own, other = np.median(gate[1:]), np.median(making[1:])
        lines.append(f"  {batch} at a time: {own:.2f} s, making them {other:.2f} s: ratio {ratio:.3f}")
    return "\n".join(lines)


def _seconds(check: Check, batch: torch.Tensor) -> float:
    started = time.perf_counter()
    check(batch)
    return time.perf_counter() - started


def _vit(folder: Path) -> dict[str, tuple[Check, Check]]:
    """The ViT of Falconsai's size: ours, which sees each picture whole and in nine tiles, and the pipeline."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    labels = {"normal": 0, "nsfw": 1}
    config = ViTConfig(label2id=labels, id2label={place: name for name, place in labels.items()})
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    classifier = pipeline("image-classification", model=str(folder), device="cpu")

    def theirs(batch: torch.Tensor) -> None:
        for look in prepare(batch):
            classifier(Image.fromarray(look[0].numpy()))

    return {"ViT, 10 views against 1": (vit_nsfw(folder).ask, theirs)}


def _language(folder: Path) -> dict[str, tuple[Check, Check]]:
    """All questions, as the judge asks them, against the generation of as many answers, and of one as in their flow."""
    model = TransformersModel(save_pixtral(folder, **PIXTRAL))
    answers = sorted(model.one_token_ids(["yes", "no"]))
    prompts = [model.render(about_picture(question), True) for question in PICTURE_QUESTIONS]

    def ours(batch: torch.Tensor) -> None:
        for look in prepare(batch):
            model.logits(prompts, reduced(look[0], AREA, LONGEST))

    def generated(questions: int) -> Check:
        def theirs(batch: torch.Tensor) -> None:
            for look in prepare(batch):
                picture = reduced(look[0], AREA, LONGEST)
                for prompt in prompts[:questions]:
                    inputs = model.processor(
                        text=[prompt], images=[picture], add_special_tokens=False, return_tensors="pt"
                    )
                    model.network.generate(
                        **inputs, max_new_tokens=1, do_sample=False, prefix_allowed_tokens_fn=lambda *_: answers
                    )

        return theirs

    many = len(prompts)
    return {
        f"language judge, {many} questions against {many} (bound 0.60)": (ours, generated(many)),
        f"language judge, {many} questions against 1": (ours, generated(1)),
    }


def _graph(seed: int, batch: int, gate: bool) -> Graph:
    """The shipped workflow with its gate, which passes everything; or with ComfyUI's Save Image in the gate's place."""
    graph = small_model.workflow("text_to_image")
    for node in graph.values():
        if node["class_type"] == "FluxKreaAspectRatioLatent":
            node["inputs"] |= {"aspect_ratio": "1:1", "resolution": "1K", "batch_size": batch}
        if node["class_type"] == "FluxKreaSampler":
            node["inputs"] |= {"seed": seed}
        if node["class_type"] == "FluxKreaContentFilterLoader":
            node["inputs"] |= {"open_nsfw_review": 0.9, "open_nsfw_block": 0.9}
        if node["class_type"] == "FluxKreaSaveImage" and not gate:
            kept = {name: node["inputs"][name] for name in ("images", "filename_prefix")}
            node |= {"class_type": "SaveImage", "inputs": kept}
    return graph
