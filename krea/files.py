"""Writing files so that a kill at any moment leaves the old state or the new one, and nothing is overwritten."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write a file that may exist; readers see the old one or the new one whole."""
    with _partial(path, data) as partial:
        os.replace(partial, path)


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


@contextlib.contextmanager
def _partial(path: Path, data: bytes) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)
