"""The client as pip installs it from the checkout: a command, few packages, no PyTorch."""

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory):
    """The Python of a new environment that holds the client and nothing else."""
    folder = tmp_path_factory.mktemp("client")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--no-input", f"{root}[client]"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def test_the_installed_command_talks_to_a_server(installed, server, tmp_path):
    command = [installed.with_name("krea-client"), "server", "--server", server.url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pack"] == "0.1.0"


def test_the_client_brings_neither_torch_nor_numpy(installed):
    done = subprocess.run([installed, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    names = {package["name"].lower() for package in json.loads(done.stdout)}
    assert {"aiohttp", "pydantic", "flux-krea"} <= names
    assert not names & {"torch", "numpy", "transformers", "mcp", "ray", "comfyui-frontend-package"}


@pytest.mark.parametrize("command", ["mcp --out .", "batch jobs.jsonl --out . --ray"])
def test_what_only_some_users_need_is_named_as_an_extra(installed, tmp_path, command):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a"}\n')
    client = installed.with_name("krea-client")
    done = subprocess.run([client, *command.split()], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 14
    assert f"[{'ray' if 'ray' in command else 'mcp'}]" in done.stderr
