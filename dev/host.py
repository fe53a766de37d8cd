"""A real ComfyUI process with this pack and chosen model files in it, for the demo, the tests and hands-on work."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dev.client import ComfyClient
from dev.environment import ROOT, comfyui_root

PACK_FOLDER = "flux-krea"
START_TIMEOUT = 180.0
# Threads that wait asleep: by default they spin, which makes PyTorch ten times slower on cores that others use too.
CALM_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


class HostDied(RuntimeError):
    """ComfyUI did not start, came up without the pack or ended by itself; the message holds the end of its log."""


class ComfyHost(ComfyClient):
    """A ComfyUI process, started on entering the context and ended on leaving it.

    ``base`` holds its models, inputs, outputs and log. ``models`` are pairs of a folder below ComfyUI's models
    folder and a file to show in it. ``comfyui`` is the ComfyUI to start (default: the one that the environment
    found). Port 0 takes a free one. ``cpu`` keeps it off the accelerator.
    """

    def __init__(
        self,
        base: Path,
        models: Iterable[tuple[str, Path]] = (),
        *,
        comfyui: Path | None = None,
        port: int = 0,
        cpu: bool = True,
        arguments: Iterable[str] = (),
    ):
        self.port = port or _free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self.base = base
        self.comfyui = comfyui or comfyui_root()
        self.models = list(models)
        self.arguments = [*arguments, *(["--cpu"] if cpu else [])]
        self.log = base / "server.log"
        self.process: subprocess.Popen | None = None

    @property
    def models_dir(self) -> Path:
        return self.base / "models"

    @property
    def input_dir(self) -> Path:
        return self.base / "input"

    @property
    def output_dir(self) -> Path:
        return self.base / "output"

    def log_text(self) -> str:
        """What the server has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> "ComfyHost":
        for folder in (self.models_dir, self.input_dir, self.output_dir, self.base / "custom_nodes"):
            folder.mkdir(parents=True, exist_ok=True)
        link(ROOT, self.base / "custom_nodes" / PACK_FOLDER)
        for folder, file in self.models:
            link(file, self.models_dir / folder / file.name)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        leash = Path(__file__).with_name("leash.py")
        main = [str(leash), str(self.comfyui / "main.py"), "--port", str(self.port), "--disable-api-nodes"]
        options = ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:", *self.arguments]
        # Its own session, so that Ctrl-C reaches the caller alone, who may still want to cancel a run first.
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *main, *options],
                cwd=self.comfyui,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **CALM_THREADS, "PYTHONIOENCODING": "utf-8"},
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if time.monotonic() > deadline:
                raise HostDied(f"ComfyUI did not answer within {START_TIMEOUT:.0f} s.\n{self._log_tail()}")
            time.sleep(0.1)
        if any("IMPORT FAILED" in line and PACK_FOLDER in line for line in self.log_text().splitlines()):
            raise HostDied(f"ComfyUI started but could not load this pack.\n{self._log_tail()}")

    def _answers(self) -> bool:
        try:
            self.request("/prompt", timeout=5)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def request(self, path: str, body: dict[str, Any] | None = None, timeout: float = 30) -> bytes:
        """As ComfyClient.request; raises HostDied when the process has ended."""
        try:
            return super().request(path, body, timeout)
        except (OSError, http.client.HTTPException):
            self.check_alive()
            raise

    def check_alive(self) -> None:
        """Raises HostDied when the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise HostDied(f"ComfyUI ended with exit code {code}.\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self.log_text().splitlines()[-30:]
        return "\n".join([f"The end of its log ({self.log}):", *("  " + line for line in lines)])

    def stop(self) -> None:
        """Ends the process; harmless when it has already ended."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()


def link(source: Path, target: Path) -> None:
    """Shows ``source`` (a file or a folder) at ``target``: by a link where the system allows it, else by a copy."""
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there; it is needed as {target}.")
    if target.is_symlink() or target.is_file():
        if target.resolve() == source.resolve():
            return
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:  # Windows without developer mode
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
        else:
            _link_or_copy_file(source, target)


def _link_or_copy_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another drive
        shutil.copyfile(source, target)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_accelerator() -> bool:
    """Whether PyTorch finds a GPU or the like here; without one ComfyUI needs to be told."""
    import torch

    return torch.accelerator.is_available()
