"""Writing files so that a kill at any moment leaves the old state or the new one, and nothing is overwritten."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def replace(path: Path, data: bytes, owner_only: bool = False) -> None:
    """Write a file that may exist; readers see the old one or the new one whole.

    Args:
        owner_only: nobody else may read it (mode 0600).
    """
    with _partial(path, data, owner_only) as partial:
        os.replace(partial, path)
    _flush_names(path.parent)


def create(path: Path, data: bytes) -> None:
    """Write a file that must not exist.

    Raises:
        FileExistsError: it does; it is left as it is.
    """
    with _partial(path, data) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: claim the name, then fill it
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(partial, path)
    _flush_names(path.parent)


def flush(file: IO) -> None:
    """Put what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())


def private(path: str, flags: int) -> int:
    """An opener for `open`: a new file is its owner's alone."""
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _partial(path: Path, data: bytes, owner_only: bool = False) -> Iterator[Path]:
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")  # short: the name itself may be as long as can be
    try:
        with open(partial, "xb", opener=private if owner_only else None) as file:
            file.write(data)
            flush(file)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """Put the names in a folder on the disk, so that a power cut cannot take back what was renamed."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
