"""Downloads from a real HTTP server on this machine, in the layout of Hugging Face's addresses."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from krea.model_file.catalogue import ModelFile, Slot
from krea_client import download
from krea_client.errors import DownloadFailed

DATA = bytes(range(256)) * 20_000  # 5 MB
PUBLISHED = ModelFile(
    "small.safetensors",
    "vae",
    "https://huggingface.co/someone/some-model/resolve/main/small.safetensors",
    len(DATA),
    hashlib.sha256(DATA).hexdigest(),
)


class Hub:
    """Serves DATA, and does what a test tells it to."""

    def __init__(self):
        self.ranges: list[str | None] = []
        self.tokens: list[str | None] = []
        self.break_at: int | None = None  # end the connection after so many bytes, once
        self.status: int | None = None
        self.data = DATA
        self.takes_ranges = True

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        self.tokens.append(request.headers.get("Authorization"))
        if self.status:
            return web.Response(status=self.status)
        start = 0
        if self.takes_ranges and (asked := request.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.data):
                return web.Response(status=416)
        body = self.data[start:]
        answer = web.StreamResponse(status=206 if start else 200)
        answer.content_length = len(body)
        await answer.prepare(request)
        if self.break_at is not None:
            body, self.break_at = body[: self.break_at], None
            await answer.write(body)
            request.transport.close()
            return answer
        await answer.write(body)
        return answer


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    hub, loop, started = Hub(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/someone/some-model/resolve/main/small.safetensors", hub.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        hub.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        started.set()

    loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert started.wait(10)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(download, "FILES", {Slot.DIFFUSION_MODEL: (PUBLISHED,)})
    yield hub
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def fetch(folder: Path) -> list[Path]:
    return download.fetch(folder, [PUBLISHED.name], lambda *_: None)


def test_a_file_comes_into_its_folder_whole(hub, tmp_path):
    shown = []
    [path] = download.fetch(tmp_path, [PUBLISHED.name], lambda *step: shown.append(step))
    assert path == tmp_path / "vae" / "small.safetensors"
    assert path.read_bytes() == DATA
    assert [file.name for file in path.parent.iterdir()] == ["small.safetensors"]
    assert shown[-1] == ("small.safetensors", len(DATA), len(DATA))


def test_a_broken_connection_goes_on_where_it_broke(hub, tmp_path):
    hub.break_at = 2_000_000
    [path] = fetch(tmp_path)
    assert path.read_bytes() == DATA
    first, second = hub.ranges
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 2_000_000


def test_a_later_run_goes_on_where_an_earlier_one_stopped(hub, tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "small.safetensors.part").write_bytes(DATA[:3_000_000])
    [path] = fetch(tmp_path)
    assert path.read_bytes() == DATA
    assert hub.ranges == ["bytes=3000000-"]


def test_a_server_that_knows_no_ranges_sends_it_all_again(hub, tmp_path):
    hub.takes_ranges = False
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "small.safetensors.part").write_bytes(b"x" * 1000)
    assert fetch(tmp_path)[0].read_bytes() == DATA


def test_what_is_there_is_checked_and_not_fetched_again(hub, tmp_path):
    fetch(tmp_path)
    fetch(tmp_path)
    assert len(hub.ranges) == 1


def test_other_bytes_than_were_published_never_get_the_files_name(hub, tmp_path):
    hub.data = DATA[:-1] + b"x"
    with pytest.raises(DownloadFailed, match="SHA-256"):
        fetch(tmp_path)
    assert not (tmp_path / "vae" / "small.safetensors").exists()


def test_a_file_of_that_name_with_other_bytes_is_left_alone_and_named(hub, tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "small.safetensors").write_bytes(b"mine")
    with pytest.raises(DownloadFailed, match=r"4 bytes instead of 5,120,000"):
        fetch(tmp_path)
    assert (tmp_path / "vae" / "small.safetensors").read_bytes() == b"mine"


def test_a_gated_model_is_explained(hub, tmp_path):
    hub.status = 401
    with pytest.raises(DownloadFailed, match="accepted first.*HF_TOKEN"):
        fetch(tmp_path)


def test_the_token_goes_to_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(tmp_path)
    assert hub.tokens == ["Bearer hf_secret"]


def test_a_missing_file_is_named_with_its_address(hub, tmp_path):
    hub.status = 404
    with pytest.raises(DownloadFailed, match=r"small.safetensors answers HTTP 404"):
        fetch(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(hub, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match=r"file.* cannot be used: Not a directory"):
        fetch(tmp_path / "file")


def test_a_disk_without_room_is_found_out_before_the_first_byte(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadFailed, match="has room for 1 kB"):
        fetch(tmp_path)
