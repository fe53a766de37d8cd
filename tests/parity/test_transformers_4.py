"""The language judge on transformers 4.5x gives the answers that it gives on the version that ComfyUI brings."""

import os
import subprocess
import sys

from dev.environment import TRANSFORMERS_4

TESTS = ["tests/unit/test_language_judge.py", "tests/unit/test_packed_prompts.py"]


def python(root, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(TRANSFORMERS_4)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_forced_answers_are_read_and_whole_batches_are_packed(root):
    found = python(root, "-c", "import transformers; print(transformers.__version__)").stdout
    assert found.startswith("4.5")
    done = python(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
