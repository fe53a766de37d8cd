"""``python3 dev demo``: make a picture from a prompt, through the shipped workflow on a real ComfyUI."""

import argparse
import contextlib
import json
import os
import secrets
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dev import small_model
from dev.client import Event, Graph, PromptRejected, RunFailed, images_of
from dev.comfy import BASE, stay_open
from dev.environment import ROOT, say
from dev.host import ComfyHost, HostDied, has_accelerator
from krea.model_file import catalogue
from krea.prompting import compose

WORKFLOW = ROOT / "workflows" / "api" / "text_to_image.json"
OUTPUT = ROOT / "output"
LOADER, PROMPT, LATENT, SAMPLER = (
    "FluxKreaModelLoader",
    "FluxKreaPrompt",
    "FluxKreaAspectRatioLatent",
    "FluxKreaSampler",
)


class MissingModels(Exception):
    """Files that the shipped workflow names are not in the user's folder; the message lists all of them."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 dev demo",
        description="Makes a picture from a prompt through workflows/api/text_to_image.json, with the bundled small "
        "model (256x256 px; it knows circles, squares, triangles and stars in eight colours) or with your own "
        "FLUX.1 Krea [dev] files.",
        epilog='example: python3 dev demo "a red circle on a blue background"',
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what the picture shows, in plain words")
    parser.add_argument("--seed", type=_seed, help="makes the same picture again (default: a random one)")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="run the workflow as shipped with the files it names from this folder, for example ComfyUI/models",
    )
    parser.add_argument("--open", action="store_true", help="leave ComfyUI up and print its address")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        graph, files = chosen_model(options.models)
        node(graph, PROMPT)["prompt"] = options.prompt
        node(graph, SAMPLER)["seed"] = secrets.randbelow(2**32) if options.seed is None else options.seed
        say("Starting ComfyUI ...")
        with ComfyHost(BASE, files, cpu=not has_accelerator()) as host:
            started = time.monotonic()
            picture = make_picture(host, graph)
            report(graph, picture, time.monotonic() - started)
            if options.open:
                stay_open(host)
    except (MissingModels, PromptRejected, RunFailed, HostDied) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def chosen_model(folder: Path | None) -> tuple[Graph, list[tuple[str, Path]]]:
    """The shipped graph and the model files for it: the user's own ones, else the small model."""
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    if folder is None:
        return small_model.for_small_model(graph), small_model.FILES
    return graph, use_files(graph, folder)


def use_files(graph: Graph, folder: Path) -> list[tuple[str, Path]]:
    """Finds the model files below ``folder`` and puts their names into the graph.

    For each file that the graph names, the named one or another published form of it (such as bf16 for fp8) will do.
    Raises MissingModels.
    """
    present: dict[str, Path] = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            present.setdefault(name, Path(place, name))
    inputs, files, missing = node(graph, LOADER), [], []
    for key, value in inputs.items():
        forms = next((forms for forms in catalogue.FILES.values() if value in [file.name for file in forms]), ())
        found = next((file for file in forms if file.name in present), None)
        if found:
            inputs[key] = found.name
            files.append((found.folder, present[found.name]))
        elif forms:
            missing.append(f"  {forms[0]}")
    if missing:
        raise MissingModels("\n".join([f"Not found in {folder} or any folder below it:", *missing]))
    return files


def node(graph: Graph, class_type: str) -> dict[str, Any]:
    """The inputs of the only node of a class."""
    (found,) = (each for each in graph.values() if each["class_type"] == class_type)
    return found["inputs"]


def make_picture(host: ComfyHost, graph: Graph) -> Path:
    """Runs the graph, shows its progress and saves the picture."""
    prompt_id = ""
    for event in host.events(graph):
        prompt_id = event.data.get("prompt_id", prompt_id)
        show_progress(event, graph)
    (image,) = images_of(host.wait(prompt_id))
    return save(host.view(image), OUTPUT, f"krea_{node(graph, SAMPLER)['seed']}")


def show_progress(event: Event, graph: Graph) -> None:
    """Draws a bar of the sampler's steps on a terminal, and writes a line at its start elsewhere."""
    if event.type != "progress" or graph[event.data["node"]]["class_type"] != SAMPLER:
        return
    done, steps = event.data["value"], event.data["max"]
    if sys.stdout.isatty():
        bar = "#" * (30 * done // steps)
        print(f"\rSampling [{bar:<30}] step {done} of {steps}", end="\n" if done == steps else "", flush=True)
    elif done in (1, steps):
        say(f"Sampling: step {done} of {steps}")


def save(picture: bytes, folder: Path, name: str) -> Path:
    """Writes a PNG under a free name, whole or not at all, and never over another picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 100_000):
        target = folder / f"{name}_{number:03}.png"
        with contextlib.suppress(FileExistsError), target.open("xb"):
            break
    unfinished = target.with_suffix(f".{os.getpid()}.part")
    unfinished.write_bytes(picture)
    unfinished.replace(target)
    return target


def report(graph: Graph, picture: Path, seconds: float) -> None:
    """Prints where the picture is and what made it."""
    for name, value in settings(graph, picture):
        say(f"{name.replace('_', ' '):<17}{value}")
    say(f"{'time':<17}{seconds:.1f} s after ComfyUI had started")


def settings(graph: Graph, picture: Path) -> Iterator[tuple[str, Any]]:
    """The effective settings, by name."""
    sampler = node(graph, SAMPLER)
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])  # the PNG's first chunk
    yield "picture", picture
    words = {name: value for name, value in node(graph, PROMPT).items() if name not in ("clip", "negative_prompt")}
    yield "prompt", compose(**words)
    yield "seed", sampler["seed"]
    yield "size", f"{width}x{height} px"
    for name in ("steps", "guidance", "true_cfg", "sampler_name"):
        yield name, sampler[name]
    for name, value in node(graph, LOADER).items():
        if isinstance(value, str) and value.endswith(".safetensors"):
            yield name, value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 18446744073709551615")
    return int(text)
