"""``python3 dev evaluate``: how well krea-mini follows held-out prompts, through our own workflow in a real ComfyUI."""

import argparse
from pathlib import Path

from dev import small_model
from dev.environment import CACHE


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 dev evaluate", description=__doc__.partition(": ")[2])
    parser.add_argument("--weights", type=Path, default=small_model.FOLDER, help="folder with the four files")
    parser.add_argument("--prompts", type=int, default=72, help="half of them of one subject, half of two")
    parser.add_argument("--only", choices=("following", "guidance", "negative", "autoencoder"), help="one measurement")
    parser.add_argument("--sheet", type=Path, default=CACHE / "train" / "sheet.png", help="picture of all pictures")
    parser.add_argument("--port", type=int, default=0, help="ComfyUI's port (default: a free one)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    from dev.mini.evaluate import evaluate  # with packages that only the environment has

    evaluate(**vars(options))
    return 0
