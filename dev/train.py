"""``python3 dev train``: trains krea-mini from nothing, on drawn pictures, and writes its six files."""

import argparse
from pathlib import Path

from dev import small_model
from dev.environment import CACHE, only_one_process, say


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 dev train", description=__doc__.partition(": ")[2])
    parser.add_argument("--checkpoints", type=Path, default=CACHE / "train", help="continue from here when it has any")
    parser.add_argument("--out", type=Path, default=small_model.FOLDER, help="folder for the six files")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    from dev.mini.train import train  # with packages that only the environment has

    with only_one_process(options.checkpoints, f"Another run trains in {options.checkpoints}; waiting for it"):
        train(options.checkpoints, options.out)
    say(f"krea-mini is in {options.out}. Measure it with: python3 dev evaluate")
    return 0
