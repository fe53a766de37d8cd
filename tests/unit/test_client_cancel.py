"""Ctrl-C reaches a program without asyncio at any moment, and ends what the client does for it."""

import asyncio
import socket

import pytest

from krea_client import KreaClient, Request


@pytest.fixture
def silent_server():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "http://{}:{}".format(*server.getsockname())


def test_ctrl_c_just_after_a_step_was_handed_over_is_still_ctrl_c(silent_server, tmp_path, monkeypatch):
    hand_over = asyncio.run_coroutine_threadsafe

    def interrupted(step, loop):
        hand_over(step, loop)
        monkeypatch.undo()  # what follows is not interrupted
        raise KeyboardInterrupt

    with KreaClient(silent_server) as client:
        events = client.events(Request(prompt="a star"), tmp_path)
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(events)
