"""The job file: one request a line, as JSON, and perhaps an "id" that names the job."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import references
from ..errors import InvalidRequest
from ..request import Request

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_DEVICE = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)  # no file names on Windows


@dataclass(frozen=True)
class BatchJob:
    """A line of a job file. name: its "id", or line_ and its number; unlike every other, on any file system."""

    line: int
    name: str
    request: Request


def read(path: Path) -> list[BatchJob]:
    """The jobs of a file. A relative path of a picture is understood from the file's folder.

    Raises InvalidRequest, which names every line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The job file {path} cannot be read: {error}.") from None
    jobs, wrong, line_of = [], [], {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            job = _job(number, text, path.absolute().parent)
            first = line_of.setdefault(job.name.lower(), number)
            if first != number:
                raise InvalidRequest(f"id: {job.name!r} names line {first}, too. Expected another name for each job.")
            jobs.append(job)
        except InvalidRequest as error:
            wrong += [f"line {number}: {sentence}" for sentence in str(error).splitlines()]
    if wrong:
        raise InvalidRequest("\n".join([f"Nothing was run: {path} has lines that are wrong.", *wrong]))
    if not jobs:
        raise InvalidRequest(f'{path} holds no job. Expected a request a line, such as {{"prompt": "Fog at dawn."}}.')
    return jobs


def _job(number: int, text: str, folder: Path) -> BatchJob:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"this is no JSON ({error}). Expected a request in one line.") from None
    if not isinstance(values, dict):
        raise InvalidRequest('found JSON that is no request. Expected an object, such as {"prompt": "Fog at dawn."}.')
    name = values.pop("id", f"line_{number:05}")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICE.fullmatch(name):
        raise InvalidRequest(
            f"id: found {str(name)[:80]!r}. Expected a name for a folder: text of up to 100 letters (a to z), digits, "
            "- and _, that begins with a letter or digit and is no device of Windows."
        )
    return BatchJob(number, name, with_pictures(Request.read(values), partial(_from, folder)))


def with_pictures(request: Request, named: Callable[[str], str]) -> Request:
    """The request with another name for each of its reference pictures."""
    changes: dict[str, Any] = {}
    if request.style_references:
        changes["style_references"] = [
            each.model_dump() | {"image": named(each.image)} for each in request.style_references
        ]
    if request.image_prompt:
        changes["image_prompt"] = named(request.image_prompt)
    return request.changed(**changes)


def _from(folder: Path, image: str) -> str:
    """A picture's path from the folder on; an address or a data URI as it is."""
    is_path = references.absolute(image) != image
    return str(folder / Path(image).expanduser()) if is_path else image
