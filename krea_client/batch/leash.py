"""Runs a command that ends when the process that started it ends, however that one ended.

``python leash.py COMMAND...``: standard input is a pipe held open by the parent. The operating system closes it when
the parent exits, is killed or crashes. Needs nothing but the standard library, and no package around it.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

GRACE = 5.0  # s between asking the command to end and killing it
_PR_SET_PDEATHSIG = 1  # Linux, man 2 prctl


def main() -> int:
    options = {"preexec_fn": _end_with_leash} if sys.platform == "linux" else {}
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=os.name != "nt", **options)
    threading.Thread(target=_end_with_parent, args=(process,), daemon=True).start()
    try:
        return process.wait()
    finally:
        _signal(process, "SIGKILL")  # what the command started and left behind


def _end_with_leash() -> None:
    """In the new process: on Linux, Ray kills the children of a worker that ends, this one included."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent(process: subprocess.Popen) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    _signal(process, "SIGTERM")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    _signal(process, "SIGKILL")


def _signal(process: subprocess.Popen, name: str) -> None:
    if os.name == "nt":
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, getattr(signal, name))


if __name__ == "__main__":
    sys.exit(main())
