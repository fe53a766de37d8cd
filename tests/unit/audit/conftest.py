"""A log to work on, without waiting for the disk."""

import os
from pathlib import Path

import pytest

from tests.unit.audit.logs import fill_three_files


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """No waiting for the disk, which matters to a power cut, not to a killed process."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def three_files(folder) -> Path:
    """Six records, two to a file."""
    return fill_three_files(folder)
