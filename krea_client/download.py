"""Model files from their publishers into a ComfyUI's models folder: resumed, checked, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp

from krea.model_file.catalogue import FILES, ModelFile, Slot, readable_size

from .errors import DownloadFailed, InvalidRequest

HUB = "https://huggingface.co"
TEXT_TO_IMAGE = (Slot.DIFFUSION_MODEL, Slot.CLIP_L, Slot.T5, Slot.VAE)
TRIES = 5  # without progress, after which a download is given up; what has come is kept
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
_BLOCK = 2**20

Show = Callable[[str, int, "int | None"], None]
"""Called with a file's name, the bytes that are here and those that it has in all."""


def fetch(folder: Path, names: Sequence[str], show: Show) -> list[Path]:
    """Fetches published files by name (default: what text to image needs); those that are there are only checked.

    folder: the models folder; each file goes into its own folder below.
    Raises InvalidRequest: an unknown name. DownloadFailed: refused (with the way to the licence), broken off, no room,
    a folder that cannot be used, or other bytes than were published.
    """
    known = {file.name: file for files in FILES.values() for file in files}
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest(f"{', '.join(unknown)}: no published file has this name. Expected {', '.join(known)}.")
    chosen = [known[name] for name in names] or [FILES[slot][0] for slot in TEXT_TO_IMAGE]
    try:
        return [asyncio.run(_fetch(file, folder, show)) for file in chosen]
    except OSError as error:
        raise DownloadFailed(
            f"{error.filename or folder} cannot be used: {error.strerror}. Expected a folder to write to, such as "
            "ComfyUI/models, with room in it."
        ) from None


async def _fetch(file: ModelFile, folder: Path, show: Show) -> Path:
    target = folder / file.folder / file.name
    partial = target.with_name(file.name + ".part")
    if target.exists():
        await _check(file, target, show)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    tries = 0
    async with aiohttp.ClientSession(timeout=TIMEOUT, trust_env=True, headers=_token()) as session:
        while True:
            before = _size(partial)
            try:
                await _receive(session, file, partial, show)
                break
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                tries = 0 if _size(partial) > before else tries + 1
                if tries == TRIES:
                    raise DownloadFailed(
                        f"{file.name} broke off at {readable_size(_size(partial))}: {error or type(error).__name__}. "
                        "Run the command again to go on from there."
                    ) from None
                await asyncio.sleep(2**tries)
    await _check(file, partial, show)
    os.replace(partial, target)
    return target


async def _receive(session: aiohttp.ClientSession, file: ModelFile, partial: Path, show: Show) -> None:
    """Appends to a partial file what is missing of it."""
    have = _size(partial)
    if file.size and have >= file.size:
        return
    url = file.url.replace(HUB, os.environ.get("HF_ENDPOINT", HUB).rstrip("/"), 1)
    async with session.get(url, headers={"Range": f"bytes={have}-"} if have else {}) as answer:
        if answer.status == 416:  # nothing is missing
            return
        if answer.status in (401, 403):
            raise DownloadFailed(_gated(file))
        if answer.status not in (200, 206):
            raise DownloadFailed(f"{url} answers HTTP {answer.status}; expected {file.name}.")
        if answer.status == 200:  # from the beginning: the sender cannot go on in the middle
            have = 0
        total = file.size or (have + answer.content_length if answer.content_length is not None else None)
        _room(partial.parent, file, (total or 0) - have)
        with open(partial, "ab" if have else "wb") as out:
            async for block in answer.content.iter_chunked(_BLOCK):
                out.write(block)
                have += len(block)
                show(file.name, have, total)
            out.flush()
            os.fsync(out.fileno())
    if total is not None and have < total:
        raise aiohttp.ClientPayloadError(f"{have} of {total} bytes came")


async def _check(file: ModelFile, path: Path, show: Show) -> None:
    """Raises DownloadFailed when the file is not the published one; it is then kept under another name."""
    size = _size(path)
    wrong = f"{size:,} bytes instead of {file.size:,}" if file.size and size != file.size else ""
    if file.sha256 and not wrong:
        found = await asyncio.to_thread(_sha256, path)
        wrong = f"the SHA-256 {found} instead of {file.sha256}" if found != file.sha256 else ""
    if not wrong:
        show(file.name, size, size)
        return
    if path.suffix == ".part":
        path = path.replace(path.with_suffix(".wrong"))
    raise DownloadFailed(
        f"{path} has {wrong}: it is not the file that was published. Delete it and run the command again; if that "
        "does not help, the publisher has changed it."
    )


def _gated(file: ModelFile) -> str:
    page = file.url.partition("/resolve/")[0]
    return (
        f"{page} does not hand out {file.name} to everybody. Its licence (FLUX.1 [dev] Non-Commercial) has to be "
        f"accepted first: sign in at Hugging Face, open {page} and accept it, make a token with read access at "
        f"{HUB}/settings/tokens, set the environment variable HF_TOKEN to it, and run the command again. "
        f"{FILES[Slot.DIFFUSION_MODEL][0].name} needs none of this."
    )


def _room(folder: Path, file: ModelFile, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise DownloadFailed(
            f"{file.name} needs {readable_size(missing)} more, {folder} has room for {readable_size(free)}. Make room "
            "or choose another folder."
        )


def _token() -> dict[str, str]:
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
