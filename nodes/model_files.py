"""Model files in ComfyUI's folders: finding one by its bare name, and remembering its SHA-256."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable

import folder_paths

from ..krea.model_file.catalogue import FILES
from ..krea.model_file.header import ModelFileError

_HASH_CACHE = "flux_krea_hashes.json"
_CHUNK_BYTES = 16 * 2**20
_SIMILAR_FOLDERS = ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "clip_vision", "style_models")


def find(folder: str, name: str) -> str:
    """The name under which ComfyUI lists a file; a bare file name is also found in a subfolder.

    Raises:
        ModelFileError: no such file, or several: with the file to get, or the names to choose from.
    """
    names = folder_paths.get_filename_list(folder)
    if name in names:
        return name
    matches = _named(name, names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ModelFileError(f"{name} is in several subfolders of models/{folder}: choose {' or '.join(matches)}.")
    raise ModelFileError(f"{name} is not in models/{folder}. {_advice(folder, name)}")


def path_of(folder: str, name: str) -> str:
    """Full path of the file that `find` finds."""
    return folder_paths.get_full_path_or_raise(folder, find(folder, name))


def _named(name: str, names: list[str]) -> list[str]:
    """Entries that end in `name`, whichever way the slashes go."""
    wanted = "/" + name.replace("\\", "/")
    return [entry for entry in names if ("/" + entry.replace("\\", "/")).endswith(wanted)]


def _advice(folder: str, name: str) -> str:
    for other in _SIMILAR_FOLDERS:
        if other != folder and _named(name, folder_paths.get_filename_list(other)):
            return f"It is in models/{other}: move it to models/{folder}, then press R."
    in_folder = [file for files in FILES.values() for file in files if file.folder == folder]
    wanted = [file for file in in_folder if file.name == os.path.basename(name)] or in_folder
    return f"Get {'; or '.join(map(str, wanted))}; put it there, then press R."


def fingerprint(path: str) -> tuple[str, int, int]:
    """Changes whenever the file is replaced: path, size in bytes, time of change in ns."""
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def fingerprints(paths: Iterable[str]) -> str:
    """One for many files, as 64 hex digits: ComfyUI writes it into saved pictures, where paths have no business."""
    return hashlib.sha256(repr([fingerprint(path) for path in paths]).encode()).hexdigest()


def sha256(path: str, on_chunk: Callable[[int], None]) -> str:
    """SHA-256 of a file as 64 hex digits, remembered until the file changes.

    `on_chunk` is told how many bytes are done, chunk by chunk; what it raises ends the reading.
    """
    path, size, changed = fingerprint(path)
    cache = _read_cache()
    known = cache.get(path)
    if isinstance(known, dict) and (known.get("size"), known.get("mtime_ns")) == (size, changed):
        on_chunk(size)
        return known["sha256"]
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            on_chunk(len(chunk))
    _write_cache(cache | {path: {"size": size, "mtime_ns": changed, "sha256": digest.hexdigest()}})
    return digest.hexdigest()


def _cache_path() -> str:
    return os.path.join(folder_paths.get_user_directory(), _HASH_CACHE)


def _read_cache() -> dict[str, dict]:
    """Path -> size, time of change and SHA-256; empty when there is no such file, or a damaged one."""
    try:
        with open(_cache_path(), encoding="utf-8") as file:
            cache = json.load(file)
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _write_cache(cache: dict[str, dict]) -> None:
    # A finished file takes the old one's place in one step, so that a crash cannot leave half a file.
    partial = f"{_cache_path()}.{os.getpid()}.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(cache, file, indent=1)
        os.replace(partial, _cache_path())
    except OSError as error:
        logging.warning("Krea Model Loader: the SHA-256 could not be kept for the next time: %s", error)
