"""What the tests of the client share."""

import pytest


@pytest.fixture
def hurry(monkeypatch):
    """The client does not wait between its tries."""
    from krea_client import connection, job

    monkeypatch.setattr(connection, "PAUSE", 0.01)
    monkeypatch.setattr(job, "SILENCE", 1.0)
