"""Runs a Python script that ends when the process that started it ends, however that one ended.

``python leash.py SCRIPT ARGS``: standard input is a pipe held open by the parent. The operating system closes it
when the parent exits, is killed or crashes, on every platform, so no server is ever left behind.
"""

import os
import runpy
import sys
import threading


def _exit_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
