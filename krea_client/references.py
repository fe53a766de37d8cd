"""Reference pictures: from a path, a URL or a data URI to bytes that are a picture, under a name of their content."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import aiohttp

from .errors import InvalidRequest

LARGEST = 50 * 10**6  # bytes
DOWNLOAD_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)

_WEB = ("http://", "https://")


class Reference(NamedTuple):
    """A picture's file: a name made of its content, and its bytes."""

    name: str
    data: bytes


async def load(image: str) -> Reference:
    """The picture that a request names. Raises InvalidRequest: not there, too large, or no picture."""
    if image.startswith("data:"):
        data = _from_data_uri(image)
    elif image.startswith(_WEB):
        data = await _from_url(image)
    else:
        data = await asyncio.to_thread(_from_path, image)
    suffix = await asyncio.to_thread(_checked, data, shown(image))
    return Reference(f"{hashlib.sha256(data).hexdigest()[:32]}.{suffix}", data)


def absolute(image: str) -> str:
    """The same picture, named so that it is found from any folder."""
    if image.startswith(("data:", *_WEB)):
        return image
    return str(Path(image).expanduser().absolute())


def _from_data_uri(image: str) -> bytes:
    head, comma, body = image.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        if head.endswith(";base64"):
            return base64.b64decode(unquote_to_bytes(body), validate=True)
        return unquote_to_bytes(body)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(
            f"The data URI {shown(image)} cannot be read: {error}. Expected data:image/png;base64,..."
        ) from None


async def _from_url(image: str) -> bytes:
    try:
        async with (
            aiohttp.ClientSession(timeout=DOWNLOAD_TIMEOUT, trust_env=True) as session,
            session.get(image) as answer,
        ):
            if answer.status != 200:
                raise InvalidRequest(f"{shown(image)} answers HTTP {answer.status}; expected a picture.")
            data = bytearray()
            async for chunk in answer.content.iter_chunked(2**16):
                data += chunk
                if len(data) > LARGEST:
                    raise InvalidRequest(_too_large(image))
            return bytes(data)
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        named = isinstance(error, (ValueError, aiohttp.ClientResponseError))  # their texts hold the whole address
        why = type(error).__name__ if named else error or "no answer in time"
        raise InvalidRequest(f"{shown(image)} could not be fetched: {why}.") from None


def _from_path(image: str) -> bytes:
    path = Path(image).expanduser()
    try:
        if path.stat().st_size > LARGEST:
            raise InvalidRequest(_too_large(image))
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidRequest(
            f"There is no file {path.absolute()}. Expected a picture's path, URL or data URI."
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}.") from None


def _checked(data: bytes, name: str) -> str:
    """The suffix of a picture's format, once its header has been read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            return picture.format.lower()
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        # Pillow names what it does not know by its place in memory.
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise InvalidRequest(f"{name} is no picture that can be read{why}. Expected PNG, JPEG or WebP.") from None


def _too_large(image: str) -> str:
    return f"{shown(image)} is larger than {LARGEST // 10**6} MB. Expected a smaller picture."


def shown(image: str) -> str:
    """The picture as messages name it: without the login or key that an address may hold."""
    if image.startswith("data:"):
        return image[:40] + "..."
    if image.startswith(_WEB):
        return re.sub(r"//[^/]*@", "//", re.split("[?#]", image)[0])
    return image
