"""The Chromium that the browser tests drive: the system's own, else Playwright's."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dev.environment import say

ON_PATH = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NoBrowser(Exception):
    """There is no Chromium; the message says why and how to get one."""


@functools.cache
def chromium() -> str:
    """The path of a Chromium, installed for once when the platform allows it. Raises NoBrowser."""
    found = _on_path()
    if found is None and _may_apt_install():
        say("Installing Debian's chromium (once, about 400 MB) ...")
        subprocess.run(["apt-get", "update"], capture_output=True, check=False)
        subprocess.run(["apt-get", "install", "-y", "chromium"], capture_output=True, check=False)
        found = _on_path()
    return found or _of_playwright()


def _on_path() -> str | None:
    return next(filter(None, map(shutil.which, ON_PATH)), None)


def _may_apt_install() -> bool:
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def _of_playwright() -> str:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    if not Path(path).exists():
        say("Installing Playwright's chromium (once, about 400 MB) ...")
        install = [sys.executable, "-m", "playwright", "install", "chromium"]
        done = subprocess.run(install, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if not Path(path).exists():
            tail = "\n".join(done.stdout.splitlines()[-5:])
            raise NoBrowser(f"No Chromium on PATH, and Playwright could not fetch its own:\n{tail}")
    return path
