"""``python3 dev test``: the whole test suite or parts of it, with all that it needs."""

import argparse
import os
import subprocess
import sys
from typing import NamedTuple

from dev import environment
from dev.environment import ROOT, say
from dev.host import CALM_THREADS

PARTS = {
    "unit": "the engine and the tools by themselves",
    "parity": "the nodes against diffusers and against ComfyUI's own nodes, in one process",
    "server": "the workflows and nodes through a real ComfyUI's HTTP interface",
    "browser": "the workflows in ComfyUI's frontend, in a headless Chromium",
    "checks": "the outside judges: comfy-cli, comfy-test, nodesafe",
}

# A process for each core, up to four (each has a ComfyUI of its own and holds up to 3 GB), with one thread each: two
# threads are no faster on a model this small. A file's tests stay together, for their fixtures; files start in the
# order of the parts, which is also what Playwright needs: no test can use asyncio after it in the same process.
PARALLEL = ["--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Chosen(NamedTuple):
    """The parts to run, in the order of PARTS, and what is passed on to pytest."""

    parts: list[str]
    pytest: list[str]


def parse(arguments: list[str]) -> Chosen:
    listing = "\n".join(f"  {name:<9}{what}" for name, what in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python3 dev test",
        usage="python3 dev test [-h] [PART ...] [-- PYTEST ARGUMENTS]",
        description="Runs ruff, then pytest over the whole suite or the named parts.",
        epilog=f"parts:\n{listing}\n\nexamples: python3 dev test unit -- -k schedule\n"
        "          python3 dev test server -- --numprocesses=0 --pdb   (all in one process)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all parts")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    named = parser.parse_args(arguments[:split]).parts
    if unknown := sorted({*named} - {*PARTS}):
        parser.error(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    return Chosen([part for part in PARTS if part in named or not named], arguments[split + 1 :])


def main(arguments: list[str]) -> int:
    parts, pytest_arguments = parse(arguments)
    environment.prepare(tests=True, checks="checks" in parts)
    if "browser" in parts:
        _say_which_browser()
    folders = [f"tests/{part}" for part in parts]
    commands = [["ruff", "check"], ["ruff", "format", "--check"], ["pytest", *PARALLEL, *folders, *pytest_arguments]]
    # All run even when one fails: a long line should not hide what the tests say.
    failed = [_run(command) != 0 for command in commands]  # a killed one has a negative code
    return int(any(failed))


def _run(command: list[str]) -> int:
    say(f"$ {' '.join(command)}")
    return subprocess.call([sys.executable, "-m", *command], cwd=ROOT, env={**os.environ, **CALM_THREADS, **ONE_THREAD})


def _say_which_browser() -> None:
    from dev import browser

    try:
        say(f"Browser: {browser.chromium()}")
    except browser.NoBrowser as error:
        say(f"Browser tests will be skipped, or fail where CI is set: {error}")
