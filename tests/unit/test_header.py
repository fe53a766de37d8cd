"""The header reader: every damaged or hostile file gives a clear error, at once and without much memory."""

import contextlib
import json
import os
import re
import time
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from krea.model_file.header import MAX_HEADER_BYTES, Header, ModelFileError, Tensor, read_header
from tests.unit.safetensors_files import flux, write_header, write_sparse

MB = 2**20


@pytest.fixture
def error_of(tmp_path):
    """The message for a file of these bytes."""

    def read(content: bytes) -> str:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(ModelFileError) as error:
            read_header(path)
        return str(error.value)

    return read


def header(text: str | bytes, data: bytes = b"") -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def one(**fields) -> bytes:
    return header(json.dumps({"weight": entry(**fields)}), bytes(8))


def test_valid_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"b": torch.zeros(2, 3), "a": torch.zeros(4, dtype=torch.bfloat16)}, {"title": "x"}))
    found = read_header(path)
    assert found.tensors == {"b": Tensor("F32", (2, 3)), "a": Tensor("BF16", (4,))}
    assert found.metadata == {"title": "x"}
    assert found.file_size == path.stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"abc", "only 3 bytes"),
        (bytes(100), "starts with zero bytes"),
        (b"GGUF\3\0\0\0" + bytes(50), "GGUF file.*ComfyUI-GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <html>", "web page"),
        (b'{"error": "Access to model is restricted"}', "JSON text"),
        (b"PK\3\4\x14\0\0\0" + bytes(50), "PyTorch"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P", "pickle"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(50), "not a safetensors file"),
        ((1000).to_bytes(8, "little") + b'{"a":', "truncated: its header alone has 1,000 bytes, the file has 13"),
        ((2**64 - 1).to_bytes(8, "little") + bytes(50), "not a safetensors file"),
        (header('{"a": '), "damaged"),
        (header(b'{"\xff": 1}'), "damaged.*utf-8"),
        (header("[]"), "JSON list"),
        (header("[" * 100_000), "damaged"),
        (header('{"a":' * 100_000), "damaged"),
        (header('{"a": ' + "9" * 1_000_000 + "}"), "not a size"),
        (header('{"w": 1}'), "'w' must have dtype, shape and two data_offsets"),
        (header(json.dumps({"w": entry(offsets=(0,))})), "two data_offsets"),
        (header(json.dumps({"__metadata__": {"a": 1}})), "__metadata__ must map text to text"),
        (header(json.dumps({"__metadata__": []})), "__metadata__ must map text to text"),
        (header(f'{{"w": {json.dumps(entry())}, "w": {json.dumps(entry())}}}', bytes(8)), "occurs twice"),
        (one(dtype="F31"), "unknown dtype 'F31'"),
        (one(shape=(-2,)), "'-2' is not a size"),
        (one(shape=(2.0,)), "not a whole number"),
        (one(shape=(True, 2)), "not a whole number"),
        (one(shape=("2",)), "not a whole number"),
        (one(shape=(3,)), "do not have the size of F32"),
        (one(shape=(10**19,) * 64), "do not have the size"),
        (one(offsets=(8, 0)), "do not have the size"),
        (one(offsets=(4, 12)), "gap or an overlap at byte 0"),
        (header(json.dumps({"a": entry(), "b": entry()}), bytes(8)), "gap or an overlap"),
        (header(json.dumps({"w": entry()}), bytes(5)), "truncated: its header describes 77 bytes, the file has 74"),
        (header(json.dumps({"w": entry()}), bytes(9)), "has 78 bytes, but its header describes 77"),
    ],
)
def test_wrong_content(error_of, content, message):
    error = error_of(content)
    assert re.search(message, error), error
    assert error.startswith("model.safetensors ") and "\n" not in error


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(ModelFileError, match="is a folder"):
        read_header(tmp_path)
    with pytest.raises(ModelFileError, match="does not exist"):
        read_header(tmp_path / "missing.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelFileError, match="not a regular file"):
            read_header(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = write_header(tmp_path / "model.safetensors", b"{}")
    path.chmod(0)
    with pytest.raises(ModelFileError, match="cannot be read.*permissions"):
        read_header(path)


# Hypothesis.

any_file = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
tensor_types = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
shapes = st.lists(st.integers(0, 5), max_size=4)
tensors = st.builds(lambda dtype, shape: torch.zeros(shape, dtype=dtype), tensor_types, shapes)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
metadata = st.none() | st.dictionaries(names, texts, min_size=1, max_size=3)  # the library writes nonsense for {}
valid_files = st.builds(save, st.dictionaries(names, tensors, max_size=5), metadata)
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none()
json_values = st.recursive(
    numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F4", "Q9"]) | json_values,
        "shape": st.lists(st.integers(-1, 2**40) | json_values, max_size=4),
        "data_offsets": st.lists(st.integers(-1, 2**40) | json_values, max_size=3),
    },
)
hostile_files = st.builds(
    lambda fields, data: header(json.dumps(fields), data),
    st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), entries | json_values, max_size=4) | json_values,
    st.binary(max_size=32),
)


def read(path, content) -> Header | str:
    """The header, or the message of the error; any other exception fails the test."""
    path.write_bytes(content)
    try:
        return read_header(path)
    except ModelFileError as error:
        assert str(error).startswith(path.name) and str(error).endswith(".")
        return str(error)


@any_file
@given(valid_files)
def test_valid_files_agree_with_the_safetensors_library(tmp_path, content):
    path = tmp_path / "model.safetensors"
    found = read(path, content)
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        assert found.tensors == {
            name: Tensor(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
        }
        assert found.metadata == (file.metadata() or {})


@any_file
@given(st.binary(max_size=200) | hostile_files | st.binary(max_size=64).map(header))
def test_hostile_files_give_an_error_or_a_valid_result(tmp_path, content):
    found = read(tmp_path / "model.safetensors", content)
    if isinstance(found, Header):
        assert_library_accepts(tmp_path / "model.safetensors")


@any_file
@given(valid_files, st.data())
def test_truncated_files_are_named_as_truncated(tmp_path, content, data):
    cut = data.draw(st.integers(0, len(content) - 1))
    message = read(tmp_path / "model.safetensors", content[:cut])
    if cut == 0:
        assert "is empty" in message
    elif cut < 8:
        assert f"only {cut} byte" in message
    else:
        assert "truncated" in message and f"the file has {cut:,}" in message


@any_file
@given(valid_files, st.data())
def test_damaged_files_give_an_error_or_a_valid_result(tmp_path, content, data):
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if isinstance(read(tmp_path / "model.safetensors", bytes(damaged)), Header):
        assert_library_accepts(tmp_path / "model.safetensors")


def assert_library_accepts(path):
    with safe_open(path, "pt"):
        pass


def peak_memory(path) -> int:
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelFileError):
            read_header(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [2**63, 99 * 10**6, MAX_HEADER_BYTES + 1])
def test_a_large_claim_costs_no_memory(tmp_path, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + b'{"a": ')
    os.truncate(path, 200 * 10**6)
    with pytest.raises(ModelFileError, match="not a safetensors file|a header of [0-9,]+ bytes"):
        read_header(path)
    assert peak_memory(path) < MB


def test_the_largest_hostile_header_needs_little_memory(tmp_path):
    part = b'{"aa":{}},'  # of the shapes tried, the one that grows most when parsed
    text = b'{"a": [' + part * ((MAX_HEADER_BYTES - 20) // len(part)) + b"1]}"
    assert peak_memory(write_header(tmp_path / "model.safetensors", text)) < 150 * MB


def test_a_12_gb_file_is_checked_in_milliseconds(tmp_path, record_property):
    path = write_sparse(tmp_path / "model.safetensors", flux(), "F8_E4M3")
    assert path.stat().st_size > 11_900_000_000
    start = time.perf_counter()
    found = read_header(path)
    record_property("milliseconds", 1000 * (time.perf_counter() - start))
    assert len(found.tensors) == 780
    assert peak_memory(path) < 4 * MB
