"""The command krea-client. Its sentences are here, its flags in `flags`, what it shows while waiting in `terminal`."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from krea.audit import __main__ as audit

from .. import DEFAULT_URL, errors
from ..grid import AXES
from . import commands, flags

_DESCRIPTION = (
    "Makes pictures with FLUX.1 Krea [dev] on a ComfyUI that has the Flux Krea pack, without opening it. "
    "Every command has its own --help."
)
_EPILOG = f"""\
environment:
  KREA_SERVER    the address, where --server is not given (default {DEFAULT_URL})
  KREA_HEADERS   headers for a proxy, one "Name: value" a line; as --header, but not seen in the list of processes
  HF_TOKEN       a Hugging Face token, for models download

exit codes:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack a letter of a path; standard error never fails
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except errors.KreaError as error:
        if getattr(options, "json", False):
            print(json.dumps({"error": {"kind": error.kind, "message": str(error)}}))
        print(f"krea-client: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of the output has seen enough
        sys.stdout = None
        return 0
    except KeyboardInterrupt:
        print("krea-client: cancelled", file=sys.stderr)
        return errors.CANCELLED_EXIT_CODE


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = argparse.ArgumentParser(
        prog="krea-client",
        description=_DESCRIPTION,
        epilog=_EPILOG + _exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=commands.version())
    subparsers = whole.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run, description: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=description, description=description, parents=parents)
        added.set_defaults(run=run)
        return added

    server, answer, job = flags.server(), flags.answer(), flags.job()

    made = command("generate", commands.generate, "Make pictures of a prompt.", server, answer, job)
    flags.add_prompt(made)
    flags.add_request(made)
    made.add_argument("--job-id", metavar="UUID", help="asked for again under the same id, a job is not run again")

    made = command(
        "vary",
        commands.vary,
        "Make pictures of an earlier job again, or with other seeds or settings.",
        server,
        answer,
        job,
    )
    made.add_argument("source", type=Path, metavar="RESULT", help="the .json file beside the earlier pictures")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--image", type=int, metavar="N", help="only image N of that batch (1 is the first)")
    which.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="one picture for each of these seeds")
    flags.add_request(made, without=("seed", "num_images"), earlier=True)

    made = command(
        "grid",
        commands.grid,
        "Make a picture for every combination of some settings, and one labelled sheet of them all.",
        server,
        answer,
        job,
    )
    flags.add_prompt(made)
    flags.add_request(made, without=("num_images",), several=AXES)

    made = command(
        "batch", commands.batch, "Run many jobs, one request a line, on one or more servers; goes on where it stopped.",
        flags.server(several=True), answer,
    )  # fmt: skip
    flags.add_batch(made)

    made = command("models", commands.models, "Show which model files the server has, or fetch them.", server, answer)
    flags.add_download(made)
    command("server", commands.server, "Show versions, device and queue of the server.", server, answer)

    made = command("schema", commands.schema, "Print the JSON schema of a request, or a tool definition for an LLM.")
    made.add_argument("--for", dest="reader", choices=commands.READERS, help="wrapped as this kind of tool")

    made = command("mcp", commands.mcp, "Serve as a tool for LLMs (Model Context Protocol).", server)
    flags.add_mcp(made)

    description = "Verify or export the audit record of the content filter, in ComfyUI's folder user/__flux_krea/audit."
    audit.add_arguments(command("audit", audit.run, description))
    return whole


def _exit_codes() -> str:
    types = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.KreaError):
            types.setdefault(kind.exit_code, kind)
    lines = {code: kind.__doc__.partition("; ")[0] for code, kind in types.items()}
    lines[errors.KreaError.exit_code] = "Any other failure."
    lines[errors.BLOCKED_EXIT_CODE] = "The content filter let no picture through."
    lines[errors.CANCELLED_EXIT_CODE] = "Cancelled with Ctrl-C, on the server too."
    lines[0] = "Pictures were made."
    return "\n".join(f"  {code:<5}{lines[code]}" for code in sorted(lines))
