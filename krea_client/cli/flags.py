"""The command line's flags: those of a request from its schema, and those that say where and how."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from krea.model_file.catalogue import FILES, Slot

from .. import DEFAULT_URL
from ..errors import InvalidRequest
from ..request import Request, schema

_FIELDS = schema()["properties"]
_TYPES = {"string": str, "integer": int, "number": float}


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """The prompt as a word of its own; the flags of `add_request` leave it out."""
    parser.add_argument(
        "prompt", nargs="?", default="", metavar="PROMPT", help=f"{_help('prompt')} With - it is read from the input."
    )


def add_request(
    parser: argparse.ArgumentParser,
    without: Collection[str] = (),
    several: Collection[str] = (),
    earlier: bool = False,
) -> None:
    """A flag for every field of a request; `without` some, and `several` with any number of values.

    earlier: what is not given comes from an earlier job.
    """
    group = parser.add_argument_group(
        "what the pictures show and how they are made",
        "What is not given stays as it was in the earlier job." if earlier else None,
    )
    positional = {action.dest for action in parser._actions if not action.option_strings}
    for name in Request.model_fields:
        if name in without or name in positional:
            continue
        field, flag = _FIELDS[name], "--" + name.replace("_", "-")
        settings: dict[str, Any] = {"dest": f"request.{name}", "default": argparse.SUPPRESS}
        settings["help"] = _help(name, default=not earlier)
        if name in several:  # a grid compares, so its pictures share a seed
            settings["help"] = settings["help"].replace("By default random.", "By default 0.")
        if field["type"] == "boolean":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
        elif field["type"] == "array":
            group.add_argument(flag.removesuffix("s"), action="append", metavar="IMAGE[@WEIGHT]", **settings)
        elif "enum" in field:
            group.add_argument(flag, choices=field["enum"], **settings)
        else:
            settings |= {"nargs": "+"} if name in several else {}
            group.add_argument(flag, type=_TYPES[field["type"]], metavar=_metavar(field), **settings)


def request(options: argparse.Namespace) -> dict[str, Any]:
    """The values of a request that were given on the command line."""
    values = {
        name.removeprefix("request."): value for name, value in vars(options).items() if name.startswith("request.")
    }
    if prompt := getattr(options, "prompt", ""):
        values["prompt"] = sys.stdin.read().strip() if prompt == "-" else prompt
    return values


def server(several: bool = False) -> argparse.ArgumentParser:
    """Where the server is and how it is reached."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--server",
        action="append" if several else "store",
        metavar="URL",
        help="address of ComfyUI, with a proxy's path if there is one"
        + ("; several times for several servers" if several else ""),
    )
    group.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="sent with every request")
    group.add_argument("--ca-file", metavar="PEM", help="authorities to trust besides the system's")
    group.add_argument("--certificate", metavar="PEM", help="this client's certificate")
    group.add_argument("--key", metavar="PEM", help="the key of --certificate, where it is a file of its own")
    group.add_argument("--insecure", action="store_true", help="trust any certificate; for tests in one's own network")
    group.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PART=FILE",
        help="use this file on the server instead of the published one; PART is one of "
        + ", ".join(slot.name.lower() for slot in Slot),
    )
    group.add_argument("--time-limit", type=float, metavar="SECONDS", help="cancel a job that takes longer")
    return parser


def answer() -> argparse.ArgumentParser:
    """How the answer is printed."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print the result as JSON; nothing else goes to the output")
    return parser


def job() -> argparse.ArgumentParser:
    """Where pictures go, and what is shown of their making."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--out", type=Path, default=Path("."), metavar="DIR", help="folder for the pictures (default: .)"
    )
    parser.add_argument(
        "--preview",
        action="store_true",
        help="show the picture as it grows, in terminals that can; it comes before the content filter",
    )
    return parser


def add_batch(parser: argparse.ArgumentParser) -> None:
    """What a batch runs, where to, and with whom."""
    parser.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS.jsonl",
        help='one request a line, as JSON: any fields that schema prints, and an "id" of letters, digits, - and _ that '
        "names the job's folder (default: line_ and its number); any other key is refused",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for pictures, results and report"
    )
    group = parser.add_argument_group("many machines")
    group.add_argument("--ray", action="store_true", help="work on Ray; each --server gets a worker there")
    group.add_argument("--ray-address", metavar="ADDRESS", help="of a Ray cluster; without it Ray is started here")
    group.add_argument("--workers", type=int, metavar="N", help="how many ComfyUIs --start starts (default: 1)")
    group.add_argument(
        "--start",
        metavar="COMMAND",
        help='how a Ray worker starts a ComfyUI of its own, such as "python main.py --port {port}"',
    )
    group.add_argument("--folder", metavar="DIR", help="where the worker runs --start: ComfyUI's folder (default: .)")
    group.add_argument(
        "--gpus", type=float, metavar="N", help="GPUs that Ray gives to each ComfyUI of --start (default: 0)"
    )


def add_download(parser: argparse.ArgumentParser) -> None:
    """The fetching of model files."""
    parser.set_defaults(folder=None)
    commands = parser.add_subparsers(metavar="[download]")
    download = commands.add_parser(
        "download",
        help="fetch model files into a ComfyUI's models folder",
        description="Fetches model files from Hugging Face into a ComfyUI's models folder: goes on where it stopped, "
        "and checks size and SHA-256. Without names: what text to image needs, about 17.6 GB.",
    )
    download.add_argument("folder", type=Path, metavar="FOLDER", help="the models folder, such as ComfyUI/models")
    names = [file.name for files in FILES.values() for file in files]
    download.add_argument("files", nargs="*", metavar="FILE", help=f"any of {', '.join(names)}")
    download.add_argument("--json", action="store_true", help=argparse.SUPPRESS)


def add_mcp(parser: argparse.ArgumentParser) -> None:
    """How the LLM tool is served."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument(
        "--http",
        type=_address,
        metavar="HOST:PORT",
        help="serve over HTTP, at /mcp, in place of standard input and output; 0.0.0.0 as HOST listens on all "
        "addresses of this machine, and callers name it by any of them or by its name",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=45.0,
        metavar="SECONDS",
        help="answer with a job id when a picture takes longer (default: 45)",
    )


def address(options: argparse.Namespace) -> str:
    """The server of --server or KREA_SERVER."""
    return options.server or os.environ.get("KREA_SERVER") or DEFAULT_URL


def addresses(options: argparse.Namespace) -> list[str]:
    """The servers of a batch: of every --server, else of KREA_SERVER, unless its workers start ComfyUIs themselves."""
    if options.server:
        return options.server
    return [] if options.start else [os.environ.get("KREA_SERVER") or DEFAULT_URL]


def headers(options: argparse.Namespace) -> dict[str, str]:
    """The headers of KREA_HEADERS and --header. Raises InvalidRequest, which shows no value."""
    found = {}
    for line in [*os.environ.get("KREA_HEADERS", "").splitlines(), *options.header]:
        name, colon, value = line.partition(":")
        if line.strip():
            if not colon or not name.strip():
                raise InvalidRequest('A header is not of the form "Name: value" (its text is not shown here).')
            found[name.strip()] = value.strip()
    return found


def models(options: argparse.Namespace) -> dict[Slot, str]:
    """The files of --model. Raises InvalidRequest."""
    chosen = {}
    for text in options.model:
        part, _, file = text.partition("=")
        if part.upper() not in Slot.__members__ or not file:
            parts = ", ".join(slot.name.lower() for slot in Slot)
            raise InvalidRequest(f"--model {text}: expected PART=FILE, where PART is one of {parts}.")
        chosen[Slot[part.upper()]] = file
    return chosen


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8200")
    return host, int(port)


def _help(name: str, default: bool = True) -> str:
    field = _FIELDS[name]
    default = field.get("default") if default else None
    shown = "" if default in (None, "", []) or isinstance(default, bool) else f" (default: {default})"
    return (field["description"] + shown).replace("%", "%%")


def _metavar(field: dict[str, Any]) -> str:
    if "minimum" in field and "maximum" in field:
        return f"{field['minimum']:g}-{field['maximum']:g}"
    return {"string": "TEXT", "integer": "N", "number": "X"}[field["type"]]
