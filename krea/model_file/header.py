"""The safetensors header: which tensors a file holds, read in milliseconds and without trust.

Layout (github.com/huggingface/safetensors, "Format"): 8 bytes, little-endian unsigned size N; N bytes of JSON
{"name": {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {str: str}}; tensor data.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# The format allows 100 MB, but parsed JSON can need thirty times its text. A 12B model's header is about 0.1 MB.
MAX_HEADER_BYTES = 4 * 2**20

DTYPE_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

DOWNLOAD_AGAIN = "Download it again."


class ModelFileError(ValueError):
    """A model file that cannot be used; the message says what it is, what was expected and what to do."""


class Tensor(NamedTuple):
    """Stored type (safetensors' own name, such as "BF16") and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself; `file_size` in bytes."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    file_size: int


def attention_heads(header: Header, owner: str, width: int, *head_widths: int) -> int:
    """How many attention heads a model of this width has: no tensor's shape tells.

    From the metadata ("num_attention_heads"), else by the first of `head_widths`, which published models have, that
    divides the width; a model narrower than all of them has one head.

    Raises:
        ModelFileError: no such number divides the width; `owner` begins the message.
    """
    stated = header.metadata.get("num_attention_heads")
    if stated is None:
        if width < min(head_widths):
            return 1
        for head_width in head_widths:
            if width % head_width == 0:
                return width // head_width
        raise ModelFileError(
            f"{owner} has a width of {width}, which heads of {' or '.join(map(str, head_widths))} do not divide, and "
            'its metadata has no "num_attention_heads". Choose a published file, or one whose metadata says it.'
        )
    heads = int(stated) if stated.isdecimal() and len(stated) < 5 else 0
    if not heads or width % heads:
        raise ModelFileError(
            f"{owner} says num_attention_heads {_clip(stated)} in its metadata, which does not divide its width of "
            f"{width}. {DOWNLOAD_AGAIN}"
        )
    return heads


def read_header(path: str | os.PathLike) -> Header:
    """Read and check a safetensors header. The tensor data are not read.

    Raises:
        ModelFileError: the file cannot be read, is no safetensors file, or is damaged or truncated.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise _error(path, f"is {kind}", "Choose a .safetensors file.")
        with open(path, "rb") as file:
            return _parse(path, file, status.st_size)
    except FileNotFoundError:
        raise _error(path, "does not exist", "Check the name and the folder.") from None
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror})", "Check its permissions and the disk.") from error


def _error(path: str | os.PathLike, found: str, advice: str) -> ModelFileError:
    return ModelFileError(f"{os.path.basename(os.fspath(path))} {found}. {advice}")


def _parse(path, file, file_size: int) -> Header:
    if file_size == 0:
        raise _error(path, "is empty (0 bytes)", DOWNLOAD_AGAIN)
    start = file.read(512)
    header_size = int.from_bytes(start[:8], "little")
    if file_size < 8 or header_size > min(MAX_HEADER_BYTES, file_size - 8):
        raise _not_a_header(path, start, header_size, file_size)
    if header_size == 0:
        raise _error(path, "starts with zero bytes: its download did not finish", DOWNLOAD_AGAIN)

    file.seek(8)
    text = file.read(header_size)
    try:
        fields = json.loads(str(text, "utf-8"), object_pairs_hook=_without_duplicates, parse_int=_short_int)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bad UTF-8, duplicates, bad numbers
        raise _damaged(path, str(error)) from None
    if not isinstance(fields, dict):
        raise _damaged(path, f"it is a JSON {type(fields).__name__}, not an object")

    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "__metadata__ must map text to text")
    tensors, data_size = _tensors(path, fields)
    _check_size(path, 8 + header_size + data_size, file_size)
    return Header(tensors, metadata, file_size)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _short_int(digits: str) -> int:
    if len(digits) > 20 or digits.startswith("-"):  # Python would take quadratic time for millions of digits
        raise ValueError(f"{_clip(digits)} is not a size or an offset")
    return int(digits)


def _tensors(path, fields: Mapping[str, object]) -> tuple[dict[str, Tensor], int]:
    """Check every entry, and that the data lie one behind the other without gap or overlap."""
    tensors, spans = {}, []
    for name, entry in fields.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
                pass
            case _:
                raise _damaged(path, f"entry {_clip(name)} must have dtype, shape and two data_offsets")
        if dtype not in DTYPE_BITS:
            raise _damaged(path, f"entry {_clip(name)} has the unknown dtype {_clip(dtype)}")
        if not all(type(number) is int for number in (*shape, begin, end)):
            raise _damaged(path, f"entry {_clip(name)} has a size or offset that is not a whole number")
        if (end - begin) * 8 != _bits(dtype, shape):
            raise _damaged(path, f"the data of {_clip(name)} do not have the size of {dtype} {_clip(shape)}")
        tensors[name] = Tensor(dtype, tuple(shape))
        spans.append((begin, end))

    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise _damaged(path, f"the tensor data have a gap or an overlap at byte {min(begin, position)}")
        position = end
    return tensors, position


def _bits(dtype: str, shape: list[int]) -> int:
    # A zero anywhere settles the product; a long list of large numbers would make an enormous one.
    if 0 in shape:
        return 0
    return DTYPE_BITS[dtype] * math.prod(shape) if len(shape) <= 64 else -1


def _check_size(path, expected: int, found: int) -> None:
    if found < expected:
        raise _error(
            path,
            f"is truncated: its header describes {expected:,} bytes, the file has {found:,}",
            "The download or copy did not finish. " + DOWNLOAD_AGAIN,
        )
    if found > expected:
        raise _error(
            path, f"has {found:,} bytes, but its header describes {expected:,}", f"It is damaged. {DOWNLOAD_AGAIN}"
        )


def _damaged(path, reason: str) -> ModelFileError:
    return _error(path, f"has a damaged safetensors header: {reason}", DOWNLOAD_AGAIN)


def _clip(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# What the first bytes say when they are not the size of a header: (bytes, what it is, what to do).
_OTHER_FORMATS = (
    (b"GGUF", "is a GGUF file", "Load GGUF files with the ComfyUI-GGUF pack, or get the .safetensors file."),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, a small text in place of the weights",
        'Run "git lfs pull" in its folder, or download the file itself.',
    ),
    (b"PK\x03\x04", "is a PyTorch (.pt/.pth/.ckpt) or zip file", "Get the .safetensors file of this model."),
    (b"\x80", "is a Python pickle (.pt/.pth/.ckpt/.bin)", "Get the .safetensors file of this model."),
    (b"<", "is a web page", "The link led to a page, not to the file; gated models need a login. " + DOWNLOAD_AGAIN),
    (b"{", "is a JSON text", "It may be an index or a server's error message. Get the .safetensors file."),
)


def _not_a_header(path, start: bytes, header_size: int, file_size: int) -> ModelFileError:
    if file_size < 8:
        return _error(path, f"has only {file_size} bytes", DOWNLOAD_AGAIN)
    if header_size <= MAX_HEADER_BYTES:
        return _error(
            path,
            f"is truncated: its header alone has {header_size:,} bytes, the file has {file_size:,}",
            "The download or copy did not finish. " + DOWNLOAD_AGAIN,
        )
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    for magic, found, advice in _OTHER_FORMATS:
        if text.startswith(magic):
            return _error(path, found, advice)
    if start[8:9] == b"{" and header_size <= file_size:
        return _error(
            path,
            f"has a header of {header_size:,} bytes, which no known model has (at most {MAX_HEADER_BYTES:,} are read)",
            DOWNLOAD_AGAIN,
        )
    return _error(path, "is not a safetensors file: it does not begin with the size of a header", DOWNLOAD_AGAIN)
