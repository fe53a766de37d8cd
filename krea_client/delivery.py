"""From a finished job to files on this disk: whole or not at all, never over another picture."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from krea import files
from krea.picture_file import SUFFIXES

from . import references
from .connection import Connection, NotFound, patiently
from .errors import CannotSave, InvalidRequest, JobFailed, ServerUnreachable
from .graph import PROMPT, PROMPT_FILTER, SAVE
from .job import Job, outputs
from .request import Request
from .result import Picture, Result, Server, Timings, Verdict

FETCHES = 3  # of a picture that arrives otherwise than the server wrote it
_CUT = "T5 reads the first "  # so Krea Prompt begins to tell of words beyond the tokens that are read
_PROMPT_OUTCOMES = {"pass": "pass", "review": "its pictures need review", "block": "refused"}


def prepare(folder: Path) -> None:
    """Makes the folder for a job's files, before the job costs anything. Raises CannotSave."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotSave(f"The folder {folder} cannot be made: {error.strerror}. Choose another one.") from None


async def deliver(
    connection: Connection,
    job: Job,
    request: Request,
    folder: Path,
    server: Server,
    models: dict[str, str],
    begun: float,
    patience: float,
) -> Result:
    """Fetches the pictures of a finished job, writes them, and beside them the result as JSON.

    Args:
        begun: time.monotonic() at the start of the job.
        patience: seconds to wait for a server that stops answering.

    Raises CannotSave, JobFailed, JobInterrupted, OutOfMemory, ServerUnreachable.
    """
    found = outputs(job.record)
    saved, prompt_found = found.get(SAVE, {}), found.get(PROMPT_FILTER, {}).get("verdicts", [None])[0]
    if prompt_found and prompt_found["decision"] == "block":
        pictures = [Picture(seed=seed) for seed in request.seeds]
    else:
        pictures = await _pictures(connection, request, saved, folder, job.id, patience)
    queued, ran = _server_times(job.record)
    frame = request.frame.final_size
    named = {"image_prompt": references.absolute(request.image_prompt)} if request.image_prompt else {}
    if request.style_references:
        named["style_references"] = [
            each.model_dump() | {"image": references.absolute(each.image)} for each in request.style_references
        ]
    result = Result(
        status="done" if any(picture.path for picture in pictures) else "blocked",
        job_id=job.id,
        pictures=pictures,
        prompt_verdict=prompt_found and _verdict(prompt_found, _PROMPT_OUTCOMES[prompt_found["decision"]]),
        notes=_notes(found, request),
        request=request.changed(**named).values(),
        settings=request.model_dump(mode="json") | {"size": f"{frame.width}x{frame.height}"},
        models=models,
        timings=Timings(queued=queued, ran=ran, total=round(time.monotonic() - begun, 3)),
        server=server,
    )
    data = result.model_dump_json(indent=2).encode() + b"\n"
    await asyncio.to_thread(_write, folder, f"krea_{request.seed}", ".json", data, job.id, _of_job(job.id))
    return result


async def _pictures(
    connection: Connection, request: Request, saved: dict[str, Any], folder: Path, job_id: str, patience: float
) -> list[Picture]:
    """One entry for each picture that was asked for, in the order of the seeds."""
    images = saved.get("images", [])
    verdicts = [None] * len(images) if request.content_filter == "off" else saved.get("verdicts", [])
    delivered = [verdict is None or "sha256" in verdict for verdict in verdicts]
    if len(verdicts) != request.num_images or sum(delivered) != len(images):
        raise JobFailed(
            f"{request.num_images} pictures were asked for; the server answers with {len(images)} and "
            f"{len(verdicts)} verdicts. Update the pack or this client, so that they are of one version."
        )
    images = iter(images)
    pictures = []
    for seed, verdict, is_here in zip(request.seeds, verdicts, delivered, strict=True):
        kept = Picture(seed=seed, verdict=verdict and _verdict(verdict, verdict["outcome"]))
        if is_here:
            data, size = await _fetch(connection, next(images), verdict and verdict["sha256"], patience)
            kept.path = await asyncio.to_thread(
                _write, folder, f"krea_{seed}", SUFFIXES[request.output_format], data, job_id
            )
            kept.sha256 = hashlib.sha256(data).hexdigest()
            kept.width, kept.height = size
        pictures.append(kept)
    return pictures


async def _fetch(
    connection: Connection, image: dict[str, str], sha256: str | None, patience: float
) -> tuple[bytes, tuple[int, int]]:
    """A picture whose bytes are those that the server wrote, and its size in px."""
    where = {key: image[key] for key in ("filename", "subfolder", "type")}
    try:
        for _ in range(FETCHES):
            data = await patiently(lambda: connection.file("/view", **where), patience)
            if sha256 in (None, hashlib.sha256(data).hexdigest()):
                with contextlib.suppress(OSError, SyntaxError):  # cut off
                    return data, await asyncio.to_thread(_size, data, sha256 is None)
    except NotFound:
        raise JobFailed(
            f"{connection.url} made {image['subfolder']}/{image['filename']}, but does not have it any more. Ask for "
            "it again under another job id."
        ) from None
    raise ServerUnreachable(
        f"{image['filename']} arrives with other bytes than {connection.url} wrote. Something in between changes or "
        "cuts pictures; use an address without it."
    )


def _write(
    folder: Path, name: str, suffix: str, data: bytes, job_id: str, same: Callable[[bytes], bool] | None = None
) -> str:
    """Writes a file under the first free name, unless it is there.

    Args:
        same: whether a file with these bytes is this one; by default those that are equal.
    """
    same = same or data.__eq__
    number = 1
    while True:
        path = folder / f"{name}{f'_{number}' if number > 1 else ''}{suffix}"
        try:
            if os.path.lexists(path):
                if path.is_file() and same(path.read_bytes()):
                    return str(path)
                number += 1
            else:
                files.create(path, data)
                return str(path)
        except FileExistsError:  # another process was faster; look at what it wrote
            continue
        except OSError as error:
            raise CannotSave(
                f"{path} could not be written: {error.strerror}. The pictures are still on the server. Make room and "
                "run a batch again as it was; ask for a single job again, in any folder, with "
                f"--job-id {job_id}; nothing is painted twice."
            ) from None


def _size(data: bytes, whole: bool) -> tuple[int, int]:
    """Width and height of a picture; where asked, the whole of it must be there."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        if whole:
            picture.load()
        return picture.size


def _verdict(found: dict[str, Any], outcome: str) -> Verdict:
    return Verdict(decision=found["decision"], outcome=outcome, reasons=found["reasons"], id=found.get("id"))


def _notes(found: dict[str, Any], request: Request) -> list[str]:
    """What a person should know besides the settings, which the result has in fields."""
    lines = "\n".join(found.get(PROMPT, {}).get("text", [])).splitlines()
    notes = [line for line in lines if _CUT in line]
    if request.negative_prompt and request.true_cfg_scale == 1:
        notes.append("The negative_prompt does nothing: true_cfg_scale is 1. Set it to 1.5 to 3.")
    return notes


def _server_times(record: dict[str, Any]) -> tuple[float, float]:
    """Seconds that a job waited and ran, by the server's own clock."""
    at = {kind: data["timestamp"] for kind, data in record["status"]["messages"] if "timestamp" in data}
    made = record["prompt"][3].get("create_time", at["execution_start"])
    ended = at.get("execution_success", at["execution_start"])
    return round((at["execution_start"] - made) / 1000, 3), round((ended - at["execution_start"]) / 1000, 3)


def _of_job(job_id: str) -> Callable[[bytes], bool]:
    return lambda data: job_id.encode() in data


def read(path: Path) -> Result:
    """The result that lies beside the pictures of a job. Raises InvalidRequest."""
    try:
        return Result.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} is not the result of a job ({str(error).splitlines()[0]}).") from None
