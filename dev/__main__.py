"""``python3 dev COMMAND``: every tool of the checkout. Runs on the standard library until its environment exists."""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

# `python3 dev` puts the folder dev itself on the path; what is imported is the package dev below the checkout.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dev import environment

COMMANDS = {
    "demo": ("dev.demo", "make a picture from a prompt with a real ComfyUI"),
    "comfy": ("dev.comfy", "start a ComfyUI with the pack and the small model, for hands-on work"),
    "test": ("dev.suite", "run the test suite or a part of it"),
    "bench": ("dev.bench", "measure the pack against ComfyUI's own nodes"),
    "train": ("dev.train", "train the small model krea-mini"),
    "workflows": ("dev.workflows", "remake what follows from the shipped graphs: API copies, names, thumbnails"),
    "evaluate": ("dev.evaluate", "measure how well krea-mini follows prompts"),
}
"""Command -> its module and what it does. A module has parse(arguments) and main(arguments), and is imported by the
standard library alone: help and typing errors install nothing."""


def main() -> int:
    name, rest = _command()
    module, _ = COMMANDS[name]
    try:
        environment.check_python()
        command = importlib.import_module(module)
        command.parse(rest)
        environment.prepare()
        if not environment.inside_environment():
            return _again_inside_environment()
        return command.main(rest)
    except environment.SetupError as error:
        print(f"python3 dev: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nCancelled.", file=sys.stderr)
        return 130


def _command() -> tuple[str, list[str]]:
    listing = "\n".join(f"  {name:<11}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python3 dev",
        description="Flux Krea's workbench. The first use sets up a virtual environment and a ComfyUI in .cache.",
        epilog=f"commands:\n{listing}\n\n`python3 dev COMMAND --help` explains each. COMFYUI_PATH names a ComfyUI "
        "to use instead of the fetched one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    chosen = parser.parse_args(sys.argv[1:2])
    return chosen.command, sys.argv[2:]


def _again_inside_environment() -> int:
    command = [str(environment.python_of(environment.VENV)), str(Path(__file__).parent), *sys.argv[1:]]
    if os.name != "nt":
        os.execv(command[0], command)
    # exec on Windows returns to the shell at once, so there this process waits for the other.
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


if __name__ == "__main__":
    sys.exit(main())
