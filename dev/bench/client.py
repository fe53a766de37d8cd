"""The client against bare HTTP, two servers against one, and how soon the command answers."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dev import small_model
from dev.client import images_of
from dev.environment import ROOT
from dev.host import ComfyHost
from krea.model_file.catalogue import SMALL_MODEL
from krea_client import AsyncKreaClient, Request, batch
from krea_client.graph import build, slots

JOB = {
    "prompt": "a red circle on a blue background",
    "aspect_ratio": "1:1",
    "megapixels": 0.0625,
    "num_inference_steps": 15,
    "texture_enhancement": False,
}
POLL = 0.005  # s between questions of the bare side
STARTS = 7


def overhead(host: ComfyHost, pairs: int) -> str:
    """What a job takes beyond its time in the server, with the client and with bare HTTP, turn by turn.

    The job is in the server's cache but for judging and saving. Both sides hand over, wait and fetch; the client also
    checks, writes and flushes the files.
    """
    request = Request(seed=5, **JOB)
    names = {slot: SMALL_MODEL[slot] for slot in slots(request)}

    def bare() -> float:
        begun = time.perf_counter()
        prompt_id = host.submit(build(request, names, {}, f"bare/{uuid.uuid4()}"))
        while (record := host.history(prompt_id)) is None:
            time.sleep(POLL)
        host.view(images_of(record)[0])
        return time.perf_counter() - begun - _ran(record)

    async def measured() -> tuple[list[float], list[float]]:
        ours, theirs = [], []
        with tempfile.TemporaryDirectory() as folder:
            async with AsyncKreaClient(host.url) as client:
                for _ in range(pairs + 1):
                    begun = time.perf_counter()
                    result = await client.generate(request, folder)
                    ours.append(time.perf_counter() - begun - result.timings.ran)
                    theirs.append(bare())
        return ours[1:], theirs[1:]

    ours, theirs = asyncio.run(measured())
    extra = [1000 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(extra, n=4)
    return (
        f"client overhead per job, {pairs} cached jobs a side: client {1000 * statistics.median(ours):.1f} ms, bare "
        f"HTTP {1000 * statistics.median(theirs):.1f} ms; difference {middle:.1f} ms, quartiles {low:.1f} to "
        f"{high:.1f} (bound 20 ms)"
    )


def two_servers(folder: Path, jobs: int) -> str:
    """The throughput of a batch over two servers against the same jobs on one, each server computing on one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ExitStack() as stack:
            hosts = [stack.enter_context(ComfyHost(folder / name, small_model.FILES)) for name in ("one", "two")]
            urls = [host.url for host in hosts]
            _batch(folder, "warm", urls, 4)
            one, two = _batch(folder, "a", urls[:1], jobs), _batch(folder, "b", urls, jobs)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    return (
        f"batch of {jobs} jobs: one server {one.seconds:.1f} s, two servers {two.seconds:.1f} s, throughput ratio "
        f"{one.seconds / two.seconds:.2f}; one thread a server, {os.cpu_count()} cores on this machine, so at most "
        f"{min(2, os.cpu_count())}, and less where other work runs"
    )


def start_of_the_command() -> str:
    """Median time of `krea-client --help`, the interpreter's start included."""
    times = []
    for _ in range(STARTS):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "krea_client", "--help"], cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    return f"krea-client --help: median {statistics.median(times):.2f} s (bound 0.4 s)"


def _batch(folder: Path, name: str, urls: Iterable[str], jobs: int) -> batch.Report:
    """A run over jobs of which each has its own seed."""
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(JOB | {"seed": seed}) for seed in range(jobs)))
    report = asyncio.run(batch.run(path, folder / f"{name}_out", batch.servers(urls)))
    if report.exit_code:
        raise RuntimeError(f"The batch failed.\n{report}")
    return report


def _ran(record: dict[str, Any]) -> float:
    at = {kind: data["timestamp"] for kind, data in record["status"]["messages"]}
    return (at["execution_success"] - at["execution_start"]) / 1000
