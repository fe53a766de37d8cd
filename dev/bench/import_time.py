"""How long ComfyUI took to import the pack, by its own report."""

import re

from dev.host import PACK_FOLDER, ComfyHost


def report(host: ComfyHost) -> str:
    """The line of the server's log as a figure."""
    found = re.search(rf"([\d.]+) seconds: .*{PACK_FOLDER}\s", host.log_text())
    if found is None:
        raise RuntimeError(f"ComfyUI's log {host.log} has no import time of {PACK_FOLDER}.")
    return f"import of the pack, ComfyUI's report: {found[1]} s (bound 0.1 s)"
