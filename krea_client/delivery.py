"""From a finished job to files on this disk: whole or not at all, never over another picture."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from pathlib import Path
from typing import Any

from krea import files
from krea.picture_file import SUFFIXES

from . import references
from .connection import Connection
from .errors import CannotSave, InvalidRequest, JobFailed, ServerUnreachable
from .graph import PROMPT, PROMPT_FILTER, SAVE
from .job import Job, outputs
from .request import Request
from .result import Picture, Result, Server, Timings, Verdict

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
) -> Result:
    """Fetches the pictures of a finished job, writes them, and beside them the result as JSON.

    begun: time.monotonic() at the start of the job.
    Raises CannotSave, JobFailed, JobInterrupted, OutOfMemory, ServerUnreachable.
    """
    found = outputs(job.record)
    saved, prompt_found = found.get(SAVE, {}), found.get(PROMPT_FILTER, {}).get("verdicts", [None])[0]
    pictures = await _pictures(connection, request, saved, folder, job.id)
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
    await asyncio.to_thread(_write, folder, f"krea_{request.seed}", ".json", _json(result), job.id)
    return result


async def _pictures(
    connection: Connection, request: Request, saved: dict[str, Any], folder: Path, job_id: str
) -> list[Picture]:
    """One entry for each picture that was asked for, in the order of the seeds."""
    images = iter(saved.get("images", []))
    verdicts = saved.get("verdicts", [None] * request.num_images if request.content_filter == "off" else [])
    if not verdicts:  # the prompt was refused
        return [Picture(seed=seed) for seed in request.seeds]
    if len(verdicts) != request.num_images:
        raise JobFailed(f"{request.num_images} pictures were asked for, the server answers about {len(verdicts)}.")
    pictures = []
    for seed, verdict in zip(request.seeds, verdicts, strict=True):
        kept = Picture(seed=seed, verdict=verdict and _verdict(verdict, verdict["outcome"]))
        if verdict is None or "sha256" in verdict:
            data = await _fetch(connection, next(images), verdict and verdict["sha256"])
            kept.path = await asyncio.to_thread(
                _write, folder, f"krea_{seed}", SUFFIXES[request.output_format], data, job_id
            )
            kept.sha256 = hashlib.sha256(data).hexdigest()
            kept.width, kept.height = await asyncio.to_thread(_size, data)
        pictures.append(kept)
    return pictures


async def _fetch(connection: Connection, image: dict[str, str], sha256: str | None) -> bytes:
    """A picture whose bytes are those that the server wrote."""
    where = {key: image[key] for key in ("filename", "subfolder", "type")}
    try:
        data = await connection.file("/view", **where)
    except LookupError:
        raise JobFailed(
            f"{connection.url} made {image['subfolder']}/{image['filename']}, but does not have it any more. Ask for "
            "it again under another job id."
        ) from None
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise ServerUnreachable(
            f"{image['filename']} arrived with other bytes than {connection.url} wrote. Something in between changes "
            "pictures; use an address without it."
        )
    return data


def _write(folder: Path, name: str, suffix: str, data: bytes, job_id: str) -> str:
    """Writes a file under the first free name; the same file of the same job, fetched again, is not doubled."""
    number = 1
    while True:
        path = folder / f"{name}{f'_{number}' if number > 1 else ''}{suffix}"
        try:
            files.create(path, data)
            return str(path)
        except FileExistsError:
            if path.read_bytes() == data:
                return str(path)
            number += 1
        except OSError as error:
            raise CannotSave(
                f"{path} could not be written: {error.strerror}. The pictures are still on the server: make room or "
                f"choose another folder, and ask again with --job-id {job_id}; nothing is painted twice."
            ) from None


def _size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return picture.size


def _verdict(found: dict[str, Any], outcome: str) -> Verdict:
    return Verdict(decision=found["decision"], outcome=outcome, reasons=found["reasons"], id=found.get("id"))


def _notes(found: dict[str, Any], request: Request) -> list[str]:
    """What the nodes said beyond the settings, which the result has in fields."""
    notes = [text for node in (PROMPT,) for text in found.get(node, {}).get("text", [])]
    if request.negative_prompt and request.true_cfg_scale == 1:
        notes.append("The negative_prompt does nothing: true_cfg_scale is 1. Set it to 1.5 to 3.")
    return notes


def _server_times(record: dict[str, Any]) -> tuple[float, float]:
    """Seconds that a job waited and ran, by the server's own clock."""
    at = {kind: data["timestamp"] for kind, data in record["status"]["messages"] if "timestamp" in data}
    made = record["prompt"][3].get("create_time", at["execution_start"])
    ended = at.get("execution_success", at["execution_start"])
    return round((at["execution_start"] - made) / 1000, 3), round((ended - at["execution_start"]) / 1000, 3)


def _json(result: Result) -> bytes:
    return result.model_dump_json(indent=2).encode() + b"\n"


def read(path: Path) -> Result:
    """The result that lies beside the pictures of a job. Raises InvalidRequest."""
    try:
        return Result.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} is not the result of a job ({str(error).splitlines()[0]}).") from None
