"""`python3 dev demo`, as a newcomer types it."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROMPT = "a red circle on a blue background"


def demo(root, *arguments, **options):
    command = [sys.executable, "dev", "demo", *arguments]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def test_prompt_becomes_a_picture_with_its_settings_printed(root):
    with demo(root, PROMPT, "--seed", "7") as process:
        printed = process.stdout.read()
    assert process.returncode == 0, printed
    settings = dict(re.findall(r"^(\w[\w ]*?) {2,}(.+)$", printed, re.MULTILINE))
    path = Path(settings["picture"])
    try:
        picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    finally:
        path.unlink()
    assert picture.shape == (256, 256, 3)
    red, green, blue = picture[120:136, 120:136].mean((0, 1))
    assert red > green + 50 and red > blue + 50
    red, green, blue = picture[:16, :16].mean((0, 1))
    assert blue > red + 50 and blue > green + 50
    assert settings["prompt"].startswith(PROMPT)
    assert (settings["seed"], settings["steps"], settings["guidance"]) == ("7", "28", "4.5")
    assert settings["size"] == "256x256 px"


@pytest.mark.skipif(os.name == "nt", reason="sends Ctrl-C the POSIX way")
def test_ctrl_c_cancels_the_run_and_leaves_nothing_behind(root):
    def hear_interrupts():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = set((root / "output").glob("*"))
    with demo(root, PROMPT, start_new_session=True, preexec_fn=hear_interrupts) as process:
        while "step 1" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert "Cancelled." in rest and "Traceback" not in rest
    log = (root / ".cache" / "comfy" / "server.log").read_text(encoding="utf-8")
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", log)[1])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "ComfyUI still answers"
    assert set((root / "output").glob("*")) == before
