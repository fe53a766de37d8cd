"""What can go wrong has a type, an exit code and a word of its own, and no message tells a secret."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import krea_client
from krea_client import errors, job
from krea_client.connection import Connection, tls_context
from krea_client.errors import InvalidRequest, JobFailed, JobInterrupted, KreaError, OutOfMemory


def kinds(base=KreaError):
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from kinds(kind)


def test_every_failure_has_an_exit_code_and_a_word():
    found = list(kinds())
    assert len({kind.kind for kind in found}) == len(found)
    codes = [kind.exit_code for kind in found if kind is not errors.AccessDenied]
    assert len({*codes, errors.BLOCKED_EXIT_CODE, errors.CANCELLED_EXIT_CODE, 0}) == len(codes) + 3
    assert errors.AccessDenied.exit_code == errors.ServerUnreachable.exit_code


@pytest.mark.parametrize(
    "url",
    [
        "ftp://me:secret@host",
        "http://",
        "",
        "http://me:secret@host:port",
        "http://h?key=1",
        "http://h#a",
        "http://[::1",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_login(url):
    with pytest.raises(InvalidRequest, match="Expected http://HOST:PORT") as caught:
        Connection(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "given, url",
    [
        ("localhost:8188", "http://localhost:8188"),
        ("https://me:secret@host/comfy/", "https://host/comfy"),
        ("http://[::1]:8188", "http://[::1]:8188"),
    ],
)
def test_an_address_is_shown_without_its_login(given, url):
    assert Connection(given).url == url


def test_a_certificate_file_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for file in ("ca.pem", "gone.pem"):
        with pytest.raises(InvalidRequest, match=file):
            tls_context(ca_file=str(tmp_path / file))


def test_a_key_without_its_certificate_is_refused():
    with pytest.raises(InvalidRequest, match="key.pem has no certificate"):
        tls_context(key="key.pem")


@pytest.mark.parametrize(
    "name, value",
    [
        ("Authorization", "s3cret\r\nX: y"),
        ("X-Key", "s3cret\udcff"),
        ("X Key", "s3cret"),
        ("X\n", "s3cret"),
        ("", "s3cret"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(name, value):
    with pytest.raises(InvalidRequest, match="header") as caught:
        Connection("localhost", {name: value})
    assert "s3cret" not in str(caught.value)


def failed(kind, **data):
    return {"status": {"status_str": "error", "completed": False, "messages": [("execution_start", {}), (kind, data)]}}


@pytest.mark.parametrize(
    "record, kind, message",
    [
        (failed("execution_interrupted"), JobInterrupted, "cancelled on the server"),
        (
            failed(
                "execution_error", node_type="A", node_id="1", exception_type="ValueError", exception_message="no\n"
            ),
            JobFailed,
            r"A \(node 1\): no$",
        ),
        (
            failed("execution_error", exception_type="torch.OutOfMemoryError", exception_message="Allocation failed"),
            OutOfMemory,
            "smaller resolution",
        ),
        (
            failed(
                "execution_error",
                exception_type="RuntimeError",
                exception_message="[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory",
            ),
            OutOfMemory,
            "smaller resolution",
        ),
        (failed("execution_cached"), JobFailed, "without saying which"),
    ],
)
def test_a_record_of_a_failure_is_told_in_words(record, kind, message):
    with pytest.raises(kind, match=message) as caught:
        job.outputs(record)
    assert type(caught.value) is kind


def test_type_checkers_find_every_name_where_it_is_imported_from(root):
    [block] = [node for node in ast.parse(Path(krea_client.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {name.name: each.module for each in block.body for name in each.names}
    assert seen == krea_client._HOMES and sorted(seen) == sorted(krea_client.__all__)
    for name in krea_client.__all__:
        assert getattr(krea_client, name)
    for package in ("krea", "krea_client"):
        assert (root / package / "py.typed").exists() and f'{package} = ["py.typed"]' in (
            root / "pyproject.toml"
        ).read_text(encoding="utf-8")


def test_the_client_needs_no_torch():
    code = "import sys, krea_client.client; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
