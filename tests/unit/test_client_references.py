"""Reference pictures from paths, addresses and data URIs, and what is said of those that are none."""

import asyncio
import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from krea_client import references
from krea_client.errors import InvalidRequest


def png(side=8):
    data = io.BytesIO()
    Image.effect_noise((side, side), 50).save(data, "png")
    return data.getvalue()


PICTURE = png()


@pytest.fixture(scope="module")
def web():
    """An address whose pages are named by what they do."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if path == "/moved":
                return self.answer(302, b"", Location="/picture.png")
            if path == "/circle":
                return self.answer(302, b"", Location="/circle?key=secret")
            if path == "/elsewhere":
                return self.answer(302, b"", Location="file:///etc/hostname")
            bodies = {"/picture.png": PICTURE, "/page": b"<html>", "/large": b"x" * 3000}
            return self.answer(200 if path in bodies else 404, bodies.get(path, b""))

        def answer(self, status, body, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()  # no Content-Length: how much there is shows only at the end
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def load(image):
    return asyncio.run(references.load(image))


def test_a_picture_has_one_name_however_it_comes(tmp_path, web):
    (tmp_path / "a picture.bin").write_bytes(PICTURE)
    uri = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    found = {load(each) for each in (str(tmp_path / "a picture.bin"), f"{web}/picture.png", f"{web}/moved", uri)}
    assert len(found) == 1
    [reference] = found
    assert reference.data == PICTURE and reference.name.endswith(".png")
    assert load("data:image/png;base64," + base64.b64encode(png(9)).decode()).name != reference.name


@pytest.mark.parametrize(
    "image, message",
    [
        ("nowhere.png", "There is no file .*nowhere.png. Expected a picture's path, URL or data URI"),
        (".", "cannot be read"),
        ("a\0b", "cannot be read|There is no file"),
        ("{web}/gone?key=secret", "/gone answers HTTP 404"),
        ("{web}/page?key=secret", "/page is no picture"),
        ("{web}/circle?key=secret", "/circle could not be fetched: TooManyRedirects"),
        ("{web}/elsewhere?key=secret", "/elsewhere could not be fetched"),
        ("http://me:secret@127.0.0.1:9/a.png?key=secret", "http://127.0.0.1:9/a.png could not be fetched"),
        ("http://[::1/a.png", "could not be fetched|no file"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,A", "cannot be read"),
        ("data:image/png;base64,AAAA", "is no picture"),
        ("data:image/png;base64," + base64.b64encode(PICTURE[:-30]).decode(), "is no picture"),
    ],
)
def test_what_is_no_picture_is_named_without_its_key(web, image, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        load(image.replace("{web}", web))
    assert "secret" not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_a_large_one_is_not_read_to_its_end(monkeypatch, tmp_path, web):
    monkeypatch.setattr(references, "LARGEST", 2000)
    (tmp_path / "large.png").write_bytes(b"x" * 3000)
    for image in (f"{web}/large", str(tmp_path / "large.png")):
        with pytest.raises(InvalidRequest, match="larger than"):
            load(image)


def test_a_file_is_named_so_that_it_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert references.absolute("a.png") == str(tmp_path / "a.png")
    for image in ("https://host/a.png", "data:image/png;base64,AA=="):
        assert references.absolute(image) == image
