"""``python3 dev comfy``: a ComfyUI with the pack and the small model, for hands-on work."""

import argparse
import time

from dev import small_model
from dev.environment import CACHE, say
from dev.host import ComfyHost, HostDied, has_accelerator

BASE = CACHE / "comfy"
"""Where the demo's and the hands-on ComfyUI keep their settings, inputs and outputs; models are links."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 dev comfy", description=__doc__.partition(": ")[2])
    parser.add_argument("--port", type=int, default=8188, help="the port to listen on (default: 8188)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    port = parse(arguments).port
    say("Starting ComfyUI ...")
    try:
        with ComfyHost(BASE, small_model.FILES, port=port, cpu=not has_accelerator()) as host:
            stay_open(host)
    except HostDied as error:
        say(str(error))
        return 1
    return 0


def stay_open(host: ComfyHost) -> None:
    """Keeps the server up until Ctrl-C."""
    say(f"ComfyUI is at {host.url}, its models and outputs in {host.base}. Ctrl-C ends it.")
    try:
        while True:
            host.check_alive()
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("\nComfyUI is ended.")
