"""The outside judges, and the pack as the registry would ship it."""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.environment import CHECKS_VENV, ROOT, command_of

Tool = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """Runs a judge's command in a folder, with a home of its own in which tracking is off. Gives code and output."""
    home = tmp_path_factory.mktemp("home")
    settings = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "DO_NOT_TRACK": "1",
        "COMFY_TEST_LOGS_DIR": str(home / "logs"),
        "COMFY_TEST_WORKSPACE_DIR": str(home / "workspace"),
        "PYTHONIOENCODING": "utf-8",
    }

    def run(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [command_of(CHECKS_VENV, name), *arguments],
            cwd=folder,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=300,
            check=False,
        )

    if not command_of(CHECKS_VENV, "comfy").exists():
        pytest.fail("The outside checks are not installed; `python3 dev test checks` installs them.")
    disabled = run(home, "comfy", "tracking", "disable")
    assert "disabled" in disabled.stdout, disabled.stdout
    return run


@pytest.fixture(scope="session")
def published(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack as a user of the registry gets it: what `comfy node pack` puts into its archive."""
    if shutil.which("git") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("git is not on PATH; comfy-cli lists the files with it")
    source = tmp_path_factory.mktemp("source")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    subprocess.run(["git", "init", "-q"], cwd=source, check=True)
    subprocess.run(["git", "add", "-A"], cwd=source, check=True)
    packed = tool(source, "comfy", "node", "pack")
    assert packed.returncode == 0, packed.stdout
    folder = tmp_path_factory.mktemp("published") / "flux-krea"
    with zipfile.ZipFile(source / "node.zip") as archive:
        archive.extractall(folder)
    return folder
