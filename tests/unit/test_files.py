"""Whole files or none, and none over another, also where the file system has no links."""

import errno
import os

import pytest

from krea import files


@pytest.fixture(params=["links", "no links"])
def file_system(request, monkeypatch):
    if request.param == "no links":

        def link(source, target):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_is_whole(file_system, tmp_path):
    files.create(tmp_path / "a.png", b"picture")
    assert names(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"picture"


def test_a_file_that_is_there_stays(file_system, tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "a.png", b"new")
    assert names(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"


def test_what_cannot_be_written_leaves_nothing(file_system, tmp_path, monkeypatch):
    (tmp_path / "case.json").write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (files.create, files.replace):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "case.json", b"new")
    assert names(tmp_path) == ["case.json"] and (tmp_path / "case.json").read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_file_may_be_its_owners_alone(tmp_path):
    files.replace(tmp_path / "case.json", b"prompt", owner_only=True)
    assert (tmp_path / "case.json").stat().st_mode & 0o777 == 0o600
