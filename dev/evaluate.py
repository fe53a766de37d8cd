"""``python3 dev evaluate``: how well krea-mini follows held-out prompts and references, through our own workflows."""

import argparse
import json
import tempfile
from pathlib import Path

from dev import small_model
from dev.environment import CACHE
from dev.host import ComfyHost

PARTS = ("following", "guidance", "negative", "autoencoder", "strength", "treatments", "image prompts")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 dev evaluate", description=__doc__.partition(": ")[2])
    parser.add_argument("--weights", type=Path, default=small_model.FOLDER, help="folder with the files")
    parser.add_argument("--prompts", type=int, default=72, help="half of them of one subject, half of two")
    parser.add_argument("--only", choices=PARTS, help="one measurement")
    parser.add_argument("--sheet", type=Path, default=CACHE / "train" / "sheet.png", help="picture of all pictures")
    parser.add_argument("--port", type=int, default=0, help="ComfyUI's port (default: a free one)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    # With packages that only the environment has.
    from dev.mini import evaluate, evaluate_style
    from dev.mini.prompts import held_out_prompts

    held_out = held_out_prompts(options.prompts // 2, options.prompts // 2)
    files = [(folder, options.weights / file.name) for folder, file in small_model.FILES]
    with tempfile.TemporaryDirectory() as base, ComfyHost(Path(base), files, port=options.port) as host:
        measures = {
            "following": lambda: evaluate.following(host, held_out, options.sheet),
            "guidance": lambda: evaluate.guidance_effect(host, held_out[::4]),
            "negative": lambda: evaluate.negative_prompt(host),
            "autoencoder": lambda: evaluate.autoencoder(host, host.input_dir, small_model.VAE),
            "strength": lambda: evaluate_style.strength_curve(host),
            "treatments": lambda: evaluate_style.treatments(host),
            "image prompts": lambda: evaluate_style.image_prompts(host),
        }
        for name in [options.only] if options.only else PARTS:
            print(json.dumps({name: measures[name]()}, indent=1), flush=True)
    return 0
