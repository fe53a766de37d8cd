"""What each command does; what only some of them need is imported when they run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from krea import VERSION

from ..errors import BLOCKED_EXIT_CODE, ExtraMissing, InvalidRequest, KreaError
from ..request import Request
from . import flags

if TYPE_CHECKING:
    from ..client import AsyncKreaClient, KreaClient
    from ..result import Result

READERS = ("openai", "anthropic", "mcp")


def version() -> str:
    """The version of the client and of the pack beside it."""
    return f"krea-client {VERSION}"


def generate(options: argparse.Namespace) -> int:
    """One request."""
    asked = Request.read(flags.request(options))
    with _client(options) as client:
        return _answer(options, [_made(options, client, asked, options.job_id)])


def vary(options: argparse.Namespace) -> int:
    """The request of an earlier job, with the changes that were asked for."""
    from ..delivery import read

    earlier = Request.read(read(options.source).request).changed(**flags.request(options))
    requests = [earlier]
    if options.image is not None:
        if not 1 <= options.image <= earlier.num_images:
            raise InvalidRequest(f"--image {options.image}: that job made {earlier.num_images}. The first is 1.")
        requests = [earlier.changed(seed=earlier.seeds[options.image - 1], num_images=1)]
    elif options.seeds:
        requests = [earlier.changed(seed=seed, num_images=1) for seed in options.seeds]
    results: list[Result] = []
    with _client(options) as client, _finished(options, results):
        for each in requests:
            results.append(_made(options, client, each))
    return _answer(options, results)


def grid(options: argparse.Namespace) -> int:
    """A picture for every combination of the axes, and a sheet."""
    from .. import grid as sheets

    values = flags.request(options)
    axes = {name: values.pop(name) for name in sheets.AXES if name in values}
    cells = sheets.cells(values, axes)
    results: list[Result] = []
    with _client(options) as client, _finished(options, results):
        for cell in cells:
            results.append(_made(options, client, cell.request))
        sheet = sheets.save(cells, results, options.out)
    code = _answer(options, results, sheet=str(sheet))
    if not options.json:
        print(sheet)
    return code


def models(options: argparse.Namespace) -> int:
    """The files on the server, or their download."""
    if options.folder is not None:
        from ..download import fetch
        from .terminal import transfer

        with transfer() as progress:
            paths = fetch(options.folder, options.files, progress)
        _print(options, [str(path) for path in paths], "\n".join(map(str, paths)))
        return 0
    with _client(options) as client:
        found = client.models()
    rows = [
        {"for": each.slot.value, "file": each.file, "get": None if each.file else str(each.published[0])}
        for each in found
    ]
    lines = [f"{row['for']:<36}{row['file'] or 'missing. Get ' + row['get']}" for row in rows]
    _print(options, rows, "\n".join(lines))
    return 0


def server(options: argparse.Namespace) -> int:
    """The server's state."""
    with _client(options) as client:
        status = client.server()
    lines = [
        f"ComfyUI {status.comfyui} at {status.url}, Python {status.python}, PyTorch {status.pytorch}",
        f"Flux Krea {status.pack or 'is not installed'} (this client: {status.client})",
        f"{status.device}: {status.memory_free / 2**30:.1f} of {status.memory_total / 2**30:.1f} GiB free",
        f"{status.running} jobs running, {status.pending} waiting",
    ]
    _print(options, status.model_dump(), "\n".join(lines))
    return 0


def schema(options: argparse.Namespace) -> int:
    """The request's JSON schema."""
    from ..tool import definition

    print(json.dumps(definition(options.reader), indent=2))
    return 0


def batch(options: argparse.Namespace) -> int:
    """Many jobs."""
    if (options.start or options.ray_address) and not options.ray:
        raise InvalidRequest(
            "--start and --ray-address are for workers on Ray: add --ray, or start ComfyUI yourself and use --server."
        )
    started = {
        "count": options.workers,
        "folder": options.folder,
        "options": None if options.gpus is None else {"num_gpus": options.gpus},
    }
    started = {name: value for name, value in started.items() if value is not None}
    if started and not options.start:
        raise InvalidRequest(
            "--workers, --folder and --gpus are for the ComfyUIs that --start starts: add --start, or leave them out."
        )
    with _client_library():
        from .. import batch as batches
    from .terminal import batch_shown

    urls, settings = flags.addresses(options), _settings(options)
    if not options.ray:
        workers = batches.servers(urls, **settings)
    else:
        from ..batch import ray_pool

        workers = ray_pool.workers(
            urls,
            command=options.start,
            address=options.ray_address,
            **started,
            **settings | {"tls": _tls_files(options)},
        )
    with batch_shown() as show:
        report = asyncio.run(batches.run(options.jobs, options.out, workers, show))
    _print(options, report.model_dump(mode="json"), str(report))
    return report.exit_code


def mcp(options: argparse.Namespace) -> int:
    """The LLM tool."""
    from .. import mcp_server

    mcp_server.serve(_async_client(options), options.out, http=options.http, wait=options.wait)
    return 0


def _made(options: argparse.Namespace, client: KreaClient, asked: Request, job_id: str | None = None) -> Result:
    """Runs one job and shows it."""
    from ..events import Finished
    from .terminal import shown

    events = client.events(asked, options.out, job_id=job_id, previews=options.preview)
    with contextlib.closing(events), shown(options.preview) as show:
        for event in events:
            show(event)
    assert isinstance(event, Finished)
    return event.result


@contextlib.contextmanager
def _finished(options: argparse.Namespace, results: list[Result]) -> Iterator[None]:
    """Prints the results that there are when the next one fails or is cancelled; they may have taken hours."""
    try:
        yield
    except (KreaError, KeyboardInterrupt) as error:
        if results:
            _answer(options, results, error={"kind": getattr(error, "kind", "cancelled"), "message": str(error)})
            options.json = False  # the error is in the output, too, which is one JSON value
        raise


def _answer(options: argparse.Namespace, results: list[Result], **more: Any) -> int:
    """Prints results; the exit code."""
    values = [result.model_dump(mode="json") for result in results]
    _print(
        options, {"results": values} | more if more or len(values) > 1 else values[0], "\n\n".join(map(str, results))
    )
    return 0 if any(result.paths for result in results) else BLOCKED_EXIT_CODE


def _print(options: argparse.Namespace, values: Any, text: str) -> None:
    print(json.dumps(values, indent=2) if options.json else text)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """How a client reaches its server."""
    from ..connection import tls_context

    files = _tls_files(options)
    return {
        "headers": flags.headers(options),
        "tls": tls_context(**files) if files else None,
        "models": flags.models(options),
        "time_limit": options.time_limit,
    }


def _tls_files(options: argparse.Namespace) -> dict[str, Any] | None:
    """The arguments of tls_context; None: as the system trusts."""
    if not (options.ca_file or options.certificate or options.key or options.insecure):
        return None
    return {
        "ca_file": options.ca_file,
        "certificate": options.certificate,
        "key": options.key,
        "verify": not options.insecure,
    }


@contextlib.contextmanager
def _client(options: argparse.Namespace) -> Iterator[KreaClient]:
    with _client_library():
        from ..client import KreaClient
    with KreaClient(flags.address(options), **_settings(options)) as client:
        yield client


def _async_client(options: argparse.Namespace) -> AsyncKreaClient:
    with _client_library():
        from ..client import AsyncKreaClient
    return AsyncKreaClient(flags.address(options), **_settings(options))


@contextlib.contextmanager
def _client_library() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExtraMissing(f'{error.name} is not installed. Install it with: pip install ".[client]"') from None
