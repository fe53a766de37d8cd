"""A ComfyUI that a worker starts, starts again when it died, and that ends with the worker."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from ..connection import Connection
from ..errors import InvalidRequest, ServerUnreachable

START_LIMIT = 300.0  # s from the command to the first answer
_LEASH = Path(__file__).with_name("leash.py")


def check_command(command: str) -> None:
    """Raises InvalidRequest: the command leaves no choice of the port, or cannot be split into words."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InvalidRequest(f"The command {command!r} cannot be read: {error}.") from None
    if not any("{port}" in word for word in words):
        raise InvalidRequest(f"The command is {command!r}. Expected {{port}} in it: python main.py --port {{port}}.")


class ComfyProcess:
    """ComfyUI on a free port of this machine.

    Args:
        command: as in a shell, without its signs; {port} stands for the port, as often as it is there.
        folder: where it is run.
    """

    def __init__(self, command: str, folder: str):
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._words = [word.replace("{port}", str(self.port)) for word in shlex.split(command)]
        self._folder = Path(folder).expanduser()
        self._process: subprocess.Popen | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()
        self._starting = asyncio.Lock()

    async def ensure(self) -> None:
        """Once it answers; starts it when it is not there. Raises ServerUnreachable, with the end of its log."""
        async with self._starting:
            if self._process is None or self._process.poll() is not None:
                self._start()
            connection, deadline = Connection(self.url), time.monotonic() + START_LIMIT
            try:
                while not await _answers(connection):
                    if self._process.poll() is not None:
                        raise self._failure(f"ended with exit code {self._process.returncode}")
                    if time.monotonic() > deadline:
                        self.stop()
                        raise self._failure(f"did not answer within {START_LIMIT:.0f} s")
                    await asyncio.sleep(0.2)
            finally:
                await connection.close()

    async def keep(self) -> None:
        """Starts it again whenever it ends, on the same port, until cancelled. Raises as `ensure`."""
        while True:
            await self.ensure()
            while self._process.poll() is None:
                await asyncio.sleep(0.5)

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(_LEASH), *self._words],
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                # Ray sets this to the CPUs that the actor reserved; ComfyUI is to compute as it does anywhere else.
                env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
            )
        except OSError as error:
            raise ServerUnreachable(f"ComfyUI cannot be started in {self._folder}: {error.strerror}.") from None

    def _failure(self, what: str) -> ServerUnreachable:
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").splitlines()[-20:]
        return ServerUnreachable(
            "\n".join([f"{shlex.join(self._words)} in {self._folder} {what}. The end of its log:", *tail])
        )


async def _answers(connection: Connection) -> bool:
    try:
        await connection.get("/queue")
    except (ServerUnreachable, LookupError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
