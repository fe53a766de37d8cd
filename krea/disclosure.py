"""Picture files that say they are made by AI: written as PNG, JPEG or WebP, and read back.

The mark is the IPTC digital source type and the creator tool in XMP (iptc.org, "Photo Metadata Standard"), and EXIF
Software with the words that Black Forest Labs' own files carry. A visible label is drawn on request.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont
from PIL.ExifTags import Base as Tag
from PIL.PngImagePlugin import PngInfo

from .picture_file import DigitalSourceType

LABEL = "AI-generated"
MIN_LABELLED_SIDE = 64  # px; narrower, the label would be smaller than can be read

_MAX_SIDE = {"png": 2**31 - 1, "jpeg": 65500, "webp": 16383}  # px, of libpng, libjpeg and the WebP format
FORMATS = tuple(_MAX_SIDE)

# A JPEG segment has at most 65535 bytes, two of them its own length.
_MAX_JPEG_EXIF = 65533

_IPTC_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_ADOBE = "http://ns.adobe.com/xap/1.0/"
_SYNTAX = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_PNG_PACKET = "XML:com.adobe.xmp"


_SOFTWARE = {
    DigitalSourceType.GENERATED: "AI generated;txt2img;flux",
    DigitalSourceType.EDITED: "AI generated;img2img;flux",
}


@dataclass(frozen=True)
class Disclosure:
    """What a file tells about how its picture was made.

    source_type: None means no disclosure: the file carries no mark at all.
    tool, version: of the software that made it.
    keep_metadata: False drops all that is handed over as metadata (prompt, workflow); the mark stays.
    label: draw "AI-generated" into the lower right corner.

    Raises ValueError for a tool or version that is empty or not printable, and for a label without a source type.
    """

    source_type: DigitalSourceType | None
    tool: str
    version: str
    keep_metadata: bool = True
    label: bool = False

    def __post_init__(self):
        for name, text in (("tool", self.tool), ("version", self.version)):
            if not text or not text.isprintable():
                raise ValueError(f"Found {text!r} as the {name} of a disclosure. Expected printable text.")
        if self.label and self.source_type is None:
            raise ValueError("Found a label without disclosure. Choose a source type, or leave the label out.")

    @property
    def creator_tool(self) -> str:
        return f"{self.tool} {self.version}"


class Encoded(NamedTuple):
    """A file's bytes, and a sentence for each piece of metadata that had to be left out of it."""

    data: bytes
    notes: tuple[str, ...]


def encode(
    picture: np.ndarray,
    file_format: str,
    disclosure: Disclosure,
    metadata: Mapping[str, str],
    quality: int = 95,
) -> Encoded:
    """A picture's file, marked as `disclosure` says.

    Metadata goes where ComfyUI puts it: into PNG text chunks, as its Save Image does, and into the EXIF of WebP and
    JPEG, as its Save Animated WEBP does: Model ("prompt:{...}"), then Make ("workflow:{...}"), ImageDescription and
    DocumentName. Its frontend reads PNG and WebP back; it does not look into a JPEG. What does not fit is left out.

    Args:
        picture: (H, W, 3 or 4), floating point; values outside 0..1 are clipped. Rounded as ComfyUI rounds. Alpha is
            kept in PNG and WebP; a JPEG shows the picture on white.
        file_format: "png", "jpeg" or "webp".
        metadata: names with JSON text, such as "prompt" and "workflow".
        quality: 1 to 100, of JPEG (colour at full resolution) and of lossy WebP; PNG is lossless.

    Raises:
        ValueError: a picture, format, quality or metadata that cannot be written.
        RuntimeError: this Pillow did not write the mark.
    """
    if file_format not in FORMATS:
        raise ValueError(f"Found the file format {file_format!r}. Expected {', '.join(FORMATS)}.")
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ValueError(f"Found the quality {quality!r}. Expected a whole number from 1 to 100.")
    image = _image(picture, file_format)
    if disclosure.label:
        image = _labelled(image)
    if file_format == "jpeg" and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")

    exif, packet = Image.Exif(), b""
    if disclosure.source_type is not None:
        exif[Tag.Software] = _SOFTWARE[disclosure.source_type]
        packet = _packet(disclosure)
    entries, notes = _entries(metadata if disclosure.keep_metadata else {})
    if file_format == "png":
        info = PngInfo()
        for name, text in entries.items():
            info.add_text(name, text)
        if packet:
            info.add_itxt(_PNG_PACKET, packet.decode(), zip=False)  # Image.save(xmp=...) writes nothing into a PNG
        options = {"pnginfo": info, "compress_level": 4}  # 4: as ComfyUI's Save Image
    else:
        notes += _add_to_exif(exif, entries, _MAX_JPEG_EXIF if file_format == "jpeg" else None)
        options = {"xmp": packet, "quality": quality}
        if file_format == "jpeg":
            options["subsampling"] = "4:4:4"
    if len(exif):
        options["exif"] = exif

    buffer = io.BytesIO()
    image.save(buffer, file_format.upper(), **options)
    data = buffer.getvalue()
    if packet not in data:
        raise RuntimeError(
            f"Pillow {PIL.__version__} did not write the AI mark into the {file_format.upper()} file. Update Pillow to "
            "11.0 or newer, or save as PNG."
        )
    return Encoded(data, tuple(notes))


def _image(picture: np.ndarray, file_format: str) -> Image.Image:
    if not isinstance(picture, np.ndarray) or not np.issubdtype(picture.dtype, np.floating):
        found = f"an array of {picture.dtype}" if isinstance(picture, np.ndarray) else f"a {type(picture).__name__}"
        raise ValueError(f"Found {found} as the picture. Expected a NumPy array of floating-point numbers, 0 to 1.")
    if picture.ndim != 3 or picture.shape[2] not in (3, 4):
        raise ValueError(f"Found a picture of shape {picture.shape}. Expected (height, width, 3 or 4).")
    height, width = picture.shape[:2]
    if not 1 <= min(height, width) <= max(height, width) <= _MAX_SIDE[file_format]:
        raise ValueError(
            f"Found a picture of {width}x{height} px. A {file_format.upper()} file has sides of 1 to "
            f"{_MAX_SIDE[file_format]} px: make it another size, or choose another format."
        )
    if not np.isfinite(picture).all():
        raise ValueError(
            "Found values in the picture that are not finite numbers (NaN or infinity). The autoencoder may have "
            "overflowed: run it in float32 or bfloat16."
        )
    return Image.fromarray(np.clip(255.0 * picture, 0, 255).astype(np.uint8))


def _labelled(image: Image.Image) -> Image.Image:
    """A copy with the label: white on a dark box, which reads on any background (contrast 10:1 or more)."""
    width, height = image.size
    if min(width, height) < MIN_LABELLED_SIDE:
        raise ValueError(
            f"Found a picture of {width}x{height} px. The visible label needs at least {MIN_LABELLED_SIDE} px a side: "
            "make the picture larger, or leave the label out."
        )
    size = max(10 if width < 80 else 12, min(width, height) // 40)  # 10 px text just fits into 64 px
    font = ImageFont.load_default(size)
    text_width = round(font.getlength(LABEL))
    padding = min(size // 3, (width - text_width) // 2)
    box = Image.new("RGBA", (text_width + 2 * padding, sum(font.getmetrics()) + padding), (0, 0, 0, 190))
    ImageDraw.Draw(box).text((padding, padding // 2), LABEL, "white", font)
    margin = min(size // 2, width - box.width)
    labelled = image.convert("RGBA")
    labelled.alpha_composite(box, (width - box.width - margin, height - box.height - margin))
    return labelled.convert(image.mode)


def _packet(disclosure: Disclosure) -> bytes:
    """The XMP packet (ISO 16684-1), UTF-8."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_SYNTAX}">'
        f'<rdf:Description rdf:about="" xmlns:xmp="{_ADOBE}" xmlns:Iptc4xmpExt="{_IPTC_EXT}"'
        f" xmp:CreatorTool={quoteattr(disclosure.creator_tool)}"
        f' Iptc4xmpExt:DigitalSourceType="{disclosure.source_type.uri}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def _entries(metadata: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The metadata as ASCII, which every format stores, and a note for each name that none does."""
    entries, notes = {}, []
    for name, text in metadata.items():
        if not _is_json(text):
            raise ValueError(f"Found metadata {name!r} that is not JSON text. Make it with json.dumps.")
        # PNG keywords have up to 79 characters; in EXIF the name ends at the colon.
        if re.fullmatch(r"[!-9;-~]([ -9;-~]{0,77}[!-9;-~])?", name):
            entries[name] = re.sub(r"[^\0-\x7f]+", lambda found: json.dumps(found[0])[1:-1], text)
        else:
            notes.append(
                f"The metadata {name[:80]!r} was left out: a name has 1 to 79 printable ASCII characters, no colon."
            )
    return entries, notes


def _add_to_exif(exif: Image.Exif, entries: Mapping[str, str], limit: int | None) -> list[str]:
    """Add what there is a tag and room for (up to `limit` bytes in all); a note for each of the others."""
    notes = []
    tags = [Tag.DocumentName, Tag.ImageDescription, Tag.Make]
    for name, text in entries.items():
        tag = Tag.Model if name == "prompt" else tags.pop() if tags else None
        if tag is None:
            notes.append(f"The metadata {name!r} was left out: EXIF has no more places. Save as PNG to keep it.")
            continue
        exif[tag] = f"{name}:{text}"
        if limit is not None and len(exif.tobytes()) > limit:
            del exif[tag]
            notes.append(
                f"The metadata {name!r} ({len(text)} bytes) was left out: a JPEG file holds {limit} bytes of EXIF. "
                "Save as PNG or WebP to keep it."
            )
    return notes


def _is_json(text: object) -> bool:
    try:
        json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(text, str)


@dataclass(frozen=True)
class Statement:
    """What a file says of itself; None where it says nothing.

    source_type: the IPTC term, such as "trainedAlgorithmicMedia". software: EXIF Software.
    metadata: names with JSON text; in a PNG all of its text chunks.
    """

    source_type: str | None
    creator_tool: str | None
    software: str | None
    metadata: Mapping[str, str]


def read(data: bytes) -> Statement:
    """What a PNG, JPEG or WebP file says of itself. It is not proven: anybody can write or remove it.

    Raises:
        ValueError: another kind of file, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=[name.upper() for name in FORMATS]) as image:
            image.load()  # a PNG may have text behind its pixels
            exif = image.getexif()
            texts = dict(getattr(image, "text", {}))
            packet = image.info.get("xmp", b"")
    except Exception as error:  # Pillow has no common type for what damaged files raise
        raise ValueError(f"Found no whole PNG, JPEG or WebP file ({type(error).__name__}).") from error
    texts.pop(_PNG_PACKET, None)
    for tag in (Tag.Model, Tag.Make, Tag.ImageDescription, Tag.DocumentName):
        name, _, text = str(exif.get(tag, "")).partition(":")
        if _is_json(text):
            texts[name] = text
    properties = _properties(packet)
    source_type = properties.get(f"{{{_IPTC_EXT}}}DigitalSourceType")
    software = exif.get(Tag.Software)
    return Statement(
        source_type=source_type and source_type.rpartition("/")[2],
        creator_tool=properties.get(f"{{{_ADOBE}}}CreatorTool"),
        software=software if isinstance(software, str) else None,
        metadata=texts,
    )


def _properties(packet: bytes) -> dict[str, str]:
    """The simple properties of an XMP packet, written as attributes or as elements."""
    text = packet.decode("utf-8", "replace").strip("\0\ufeff \t\r\n")
    if "<!DOCTYPE" in text:  # XMP has none; it could define entities that expand without end
        return {}
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return {}
    properties = {}
    for description in root.iterfind(f".//{{{_SYNTAX}}}RDF/{{{_SYNTAX}}}Description"):
        properties.update(description.attrib)
        for element in description:
            properties[element.tag] = (element.get(f"{{{_SYNTAX}}}resource") or element.text or "").strip()
    return properties
