"""A leashed process ends with the process that started it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dev.environment import ROOT

LEASH = ROOT / "dev" / "leash.py"
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as status:
        return status.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks the processes up in /proc")
def test_killed_parent_takes_its_child_along(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text("import time; time.sleep(600)")
    command = [sys.executable, "-c", PARENT, str(LEASH), str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child)


def test_script_sees_its_own_name_arguments_and_folder(tmp_path):
    (tmp_path / "beside.py").write_text("word = 'found'")
    script = tmp_path / "main.py"
    script.write_text("import sys, beside; print(__name__, sys.argv, beside.word)")
    command = [sys.executable, LEASH, script, "--port", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout.read().strip() == f"__main__ {[str(script), '--port', '1']} found"
