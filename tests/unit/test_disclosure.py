"""Marked picture files: what is in their bytes, what reads it back, and every picture that is refused."""

import io
import json
import struct
import zlib
from dataclasses import FrozenInstanceError, replace

import numpy as np
import PIL
import pytest
from PIL import Image, PngImagePlugin

from krea.disclosure import FORMATS, MIN_LABELLED_SIDE, Disclosure, encode, read
from krea.picture_file import DigitalSourceType

GENERATED = Disclosure(DigitalSourceType.GENERATED, "flux-krea", "0.1.0")
EDITED = replace(GENERATED, source_type=DigitalSourceType.EDITED)
UNDISCLOSED = replace(GENERATED, source_type=None)
LABELLED = replace(GENERATED, label=True)

# As ComfyUI's Save Image writes them; json.dumps escapes all that is not ASCII.
METADATA = {
    "prompt": json.dumps({"1": {"class_type": "FluxKreaPrompt", "inputs": {"text": "Möwe: \U0001f426"}}}),
    "workflow": json.dumps({"nodes": [], "version": 0.4}),
}


def picture(height=24, width=40, channels=3, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), dtype=np.float32)


def comfyui_rounds(image):
    """The line of ComfyUI's SaveImage."""
    return np.clip(255.0 * image, 0, 255).astype(np.uint8)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def png_chunks(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        chunks.append((kind, body))
        at += 12 + length
    return chunks


def webp_chunks(data):
    assert data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    chunks, at = {}, 12
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        chunks[data[at : at + 4]] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return chunks


def jpeg_segments(data):
    assert data[:2] == b"\xff\xd8"
    segments, at = [], 2
    while data[at + 1] != 0xDA:  # start of scan
        (length,) = struct.unpack_from(">H", data, at + 2)
        segments.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return segments


def exif_texts(tiff):
    """The texts in the first directory of a TIFF structure, by tag: what ComfyUI's frontend looks at in a WebP."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, directory)
    texts = {}
    for number in range(count):
        tag, kind, length, offset = struct.unpack_from(order + "HHII", tiff, directory + 2 + 12 * number)
        if kind == 2:
            texts[tag] = tiff[offset : offset + length - 1].decode("ascii")
    return texts


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("channels", [3, 4])
def test_a_file_says_what_was_disclosed(file_format, channels):
    data, notes = encode(picture(channels=channels), file_format, GENERATED, METADATA)
    found = read(data)
    assert found.source_type == "trainedAlgorithmicMedia"
    assert found.creator_tool == "flux-krea 0.1.0"
    assert found.software == "AI generated;txt2img;flux"
    assert found.metadata == METADATA
    assert notes == ()


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_edited_picture_says_so(file_format):
    found = read(encode(picture(), file_format, EDITED, METADATA).data)
    assert found.source_type == "compositeWithTrainedAlgorithmicMedia"
    assert found.software == "AI generated;img2img;flux"


@pytest.mark.parametrize("file_format", FORMATS)
def test_private_files_keep_the_mark_and_nothing_of_the_prompt(file_format):
    data = encode(picture(), file_format, replace(GENERATED, keep_metadata=False), METADATA).data
    assert read(data) == replace(read(encode(picture(), file_format, GENERATED, METADATA).data), metadata={})
    assert b"prompt" not in data and b"workflow" not in data and b"FluxKreaPrompt" not in data


@pytest.mark.parametrize("file_format", FORMATS)
def test_without_disclosure_nothing_is_marked(file_format):
    data = encode(picture(), file_format, UNDISCLOSED, METADATA).data
    found = read(data)
    assert (found.source_type, found.creator_tool, found.software) == (None, None, None)
    assert found.metadata == METADATA
    for word in (b"xmp", b"DigitalSource", b"AI generated", b"flux-krea"):
        assert word not in data


def test_a_png_without_disclosure_is_comfyuis_own():
    info = PngImagePlugin.PngInfo()
    for name, text in METADATA.items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    Image.fromarray(comfyui_rounds(picture())).save(buffer, "PNG", pnginfo=info, compress_level=4)
    assert encode(picture(), "png", UNDISCLOSED, METADATA).data == buffer.getvalue()


def test_the_bytes_of_a_png():
    chunks = png_chunks(encode(picture(), "png", GENERATED, METADATA).data)
    texts = [body for kind, body in chunks if kind == b"tEXt"]
    assert texts == [f"{name}\0{text}".encode("ascii") for name, text in METADATA.items()]
    (xmp,) = [body for kind, body in chunks if kind == b"iTXt"]
    assert xmp.startswith(b"XML:com.adobe.xmp\0\0\0\0\0<?xpacket begin=")  # not compressed, no language
    assert (
        b'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"' in xmp
    )
    assert b'xmp:CreatorTool="flux-krea 0.1.0"' in xmp
    (exif,) = [body for kind, body in chunks if kind == b"eXIf"]
    assert exif_texts(exif) == {0x0131: "AI generated;txt2img;flux"}
    kinds = [kind for kind, _ in chunks]
    assert kinds.index(b"IDAT") > max(kinds.index(b"eXIf"), kinds.index(b"iTXt"))  # found before the pixels are read


def test_the_bytes_of_a_webp():
    chunks = webp_chunks(encode(picture(), "webp", GENERATED, METADATA).data)
    assert chunks[b"VP8X"][0] & 0b1100 == 0b1100  # says that it has EXIF and XMP
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in chunks[b"XMP "]
    assert exif_texts(chunks[b"EXIF"].removeprefix(b"Exif\0\0")) == {
        0x010F: "workflow:" + METADATA["workflow"],
        0x0110: "prompt:" + METADATA["prompt"],
        0x0131: "AI generated;txt2img;flux",
    }


def test_the_bytes_of_a_jpeg():
    segments = jpeg_segments(encode(picture(), "jpeg", GENERATED, METADATA).data)
    app1 = [body for kind, body in segments if kind == 0xE1]
    (xmp,) = [body for body in app1 if body.startswith(b"http://ns.adobe.com/xap/1.0/\0")]
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in xmp
    (exif,) = [body.removeprefix(b"Exif\0\0") for body in app1 if body.startswith(b"Exif\0\0")]
    assert exif_texts(exif)[0x010F] == "workflow:" + METADATA["workflow"]
    assert exif_texts(exif)[0x0110] == "prompt:" + METADATA["prompt"]


def test_pillow_finds_the_mark():
    """Without read()."""
    for file_format in FORMATS:
        image = Image.open(io.BytesIO(encode(picture(), file_format, GENERATED, {}).data))
        assert image.format == file_format.upper()
        assert b"trainedAlgorithmicMedia" in image.info["xmp"]
        assert image.getexif()[0x0131] == "AI generated;txt2img;flux"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [3, 4])
def test_png_pixels_are_comfyuis(dtype, channels):
    """Every level, halfway between two, and what lies outside 0..1."""
    image = np.linspace(-0.1, 1.1, 2048 * channels).astype(dtype).reshape(32, 64, channels)
    assert np.array_equal(pixels(encode(image, "png", GENERATED, METADATA).data), comfyui_rounds(image))


def test_a_view_of_a_larger_array_is_encoded_as_it_looks():
    image = picture(48, 80)[::-2, ::2]
    assert np.array_equal(pixels(encode(image, "png", GENERATED, {}).data), comfyui_rounds(image))


def test_alpha_is_kept_where_the_format_has_it():
    image = picture(channels=4)
    assert np.array_equal(pixels(encode(image, "webp", GENERATED, {}).data)[..., 3], comfyui_rounds(image)[..., 3])
    assert pixels(encode(image, "png", GENERATED, {}).data).shape == image.shape


def test_a_jpeg_shows_a_transparent_picture_on_white():
    image = np.zeros((32, 32, 4), np.float32)
    image[:, 16:, 3] = 1.0  # left half transparent, right half black
    shown = pixels(encode(image, "jpeg", GENERATED, {}).data)
    assert shown.shape == (32, 32, 3)
    assert shown[:, :8].min() > 250 and shown[:, 24:].max() < 5


def test_quality_counts_in_jpeg_and_webp():
    for file_format in ("jpeg", "webp"):
        sizes = [len(encode(picture(128, 128), file_format, GENERATED, {}, quality).data) for quality in (1, 50, 100)]
        assert sizes == sorted(sizes) and sizes[0] * 2 < sizes[2]
    assert encode(picture(), "png", GENERATED, {}, 1) == encode(picture(), "png", GENERATED, {}, 100)


def test_colour_of_a_jpeg_has_full_resolution():
    (frame,) = [body for kind, body in jpeg_segments(encode(picture(), "jpeg", GENERATED, {}).data) if kind == 0xC0]
    assert [frame[7], frame[10], frame[13]] == [0x11] * 3  # one sample of each component for each pixel


def test_the_same_input_makes_the_same_bytes():
    for file_format in FORMATS:
        assert encode(picture(), file_format, GENERATED, METADATA) == encode(
            picture(), file_format, GENERATED, METADATA
        )


def test_text_that_is_not_ascii_comes_back_as_the_same_json():
    written = json.dumps({"text": "Möwe 鳥 \U0001f426 é"}, ensure_ascii=False)
    for file_format in FORMATS:
        found = read(encode(picture(), file_format, GENERATED, {"prompt": written}).data).metadata["prompt"]
        assert found.isascii() and json.loads(found) == json.loads(written)


def test_a_creator_tool_with_xml_in_its_name_is_text():
    odd = replace(GENERATED, tool="<a href='&quot;'>\"鳥\"")
    for file_format in FORMATS:
        found = read(encode(picture(), file_format, odd, {}).data)
        assert found.creator_tool == odd.creator_tool
        assert found.source_type == "trainedAlgorithmicMedia"


def test_what_is_too_large_for_a_jpeg_is_left_out_and_said():
    big = {"prompt": METADATA["prompt"], "workflow": json.dumps("w" * 70_000), "extra": '"small"'}
    data, notes = encode(picture(), "jpeg", GENERATED, big)
    found = read(data)
    assert found.metadata == {"prompt": big["prompt"], "extra": big["extra"]}
    assert found.source_type == "trainedAlgorithmicMedia"
    (note,) = notes
    assert "'workflow'" in note and "70002 bytes" in note and "Save as PNG or WebP" in note
    for file_format in ("png", "webp"):
        data, notes = encode(picture(), file_format, GENERATED, big)
        assert read(data).metadata == big and notes == ()


def test_a_jpeg_is_filled_to_the_last_byte():
    """The largest text that fits, and one byte more."""

    def kept(length):
        data, notes = encode(picture(), "jpeg", GENERATED, {"workflow": json.dumps("w" * length)})
        assert bool(notes) is not bool(read(data).metadata)
        return not notes

    shortest, longest = 60_000, 66_000
    while longest - shortest > 1:
        middle = (shortest + longest) // 2
        shortest, longest = (middle, longest) if kept(middle) else (shortest, middle)
    assert kept(shortest) and not kept(longest)
    assert 65_300 < shortest < 65_533


def test_more_metadata_than_exif_has_places_for_is_left_out_and_said():
    many = METADATA | {f"extra{number}": str(number) for number in range(4)}
    for file_format in ("webp", "jpeg"):
        data, notes = encode(picture(), file_format, GENERATED, many)
        assert list(read(data).metadata) == ["prompt", "workflow", "extra0", "extra1"]
        assert [note.split("'")[1] for note in notes] == ["extra2", "extra3"]
    assert read(encode(picture(), "png", GENERATED, many).data).metadata == many


@pytest.mark.parametrize("name", ["XML:com.adobe.xmp", "a:b", "", "n" * 80, "Möwe", "a\0b", " a", "a\n"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_name_that_no_format_stores_is_left_out_and_said(file_format, name):
    """ComfyUI's API takes any name from a client; the picture is worth more than its metadata."""
    data, (note,) = encode(picture(), file_format, GENERATED, {name: "1"} | METADATA)
    assert read(data).metadata == METADATA
    assert read(data).source_type == "trainedAlgorithmicMedia"
    assert repr(name)[:40] in note


def luminance(colours):
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    linear = np.where(colours <= 10, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(
    ("width", "height"),
    [(64, 64), (70, 64), (77, 90), (84, 64), (64, 2000), (2000, 64), (256, 256), (1024, 704), (1500, 1200)],
)
def test_the_label_reads_on_any_background(width, height):
    backgrounds = [np.full((height, width, 3), level, np.float16) for level in (1.0, 0.5, 0.0)]
    backgrounds.append(picture(height, width))
    shown = [pixels(encode(one, "png", LABELLED, {}).data) for one in backgrounds]

    rows, columns = np.nonzero((shown[0] != 255).any(-1))  # on white all of the box is seen
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    assert (top > height // 3 or height < 128) and (left > width // 3 or width < 256), "it covers a corner only"
    assert max(width - right, height - bottom) <= max(6, min(width, height) // 80)

    box = shown[0][top:bottom, left:right, 0]
    ink, ground = box > 190, box == np.bincount(box.ravel()).argmax()
    assert ground.mean() > 0.4
    assert np.ptp(np.nonzero(ink.any(1))[0]) + 1 >= max(10, min(width, height) / 50)  # from A down to g
    for before, after in zip(backgrounds, shown, strict=True):
        outside = np.ones((height, width), bool)
        outside[top:bottom, left:right] = False
        assert np.array_equal(after[outside], comfyui_rounds(before)[outside])
        light = luminance(after[top:bottom, left:right].astype(float))
        assert (light[ink].min() + 0.05) / (light[ground].max() + 0.05) > 4.5


def test_the_label_is_whole_in_the_smallest_pictures():
    for width in range(MIN_LABELLED_SIDE, 100):
        shown = pixels(encode(np.zeros((64, width, 3), np.float16), "png", LABELLED, {}).data)
        columns = np.nonzero(shown.any((0, 2)))[0]
        assert 0 < columns.min() and columns.max() < width - 1


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("channels", [3, 4])
def test_the_label_is_in_every_format_and_the_input_is_left_alone(file_format, channels):
    image = np.zeros((128, 256, channels), np.float32)
    image.setflags(write=False)
    shown = pixels(encode(image, file_format, LABELLED, {}).data)
    assert (shown[90:, 128:, :3].min(-1) > 200).sum() > 50
    if channels == 4 and file_format != "jpeg":
        assert shown[90:, 128:, 3].max() == 255 and shown[:64, :, 3].max() == 0
    assert not image.any()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.zeros((8, 8)), r"shape \(8, 8\)"),
        (np.zeros((8, 8, 1)), r"shape \(8, 8, 1\)"),
        (np.zeros((1, 8, 8, 3)), r"shape \(1, 8, 8, 3\)"),
        (np.zeros((0, 8, 3)), "8x0 px"),
        (np.zeros((8, 0, 3)), "0x8 px"),
        (np.full((8, 8, 3), np.nan), "not finite"),
        (np.full((8, 8, 3), np.inf), "not finite"),
        (np.full((8, 8, 3), -np.inf), "not finite"),
        (np.zeros((8, 8, 3), np.uint8), "array of uint8"),
        (np.zeros((8, 8, 3), bool), "array of bool"),
        (np.zeros((8, 8, 3), complex), "array of complex128"),
        ([[[0.0, 0.0, 0.0]]], "a list"),
        (None, "a NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        encode(broken, "png", GENERATED, {})


def test_one_bad_value_among_many_is_found():
    image = picture()
    image[3, 5, 1] = np.nan
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        encode(image, "png", GENERATED, {})


@pytest.mark.parametrize(("file_format", "side"), [("webp", 16384), ("jpeg", 65501)])
def test_a_picture_too_large_for_its_format_is_refused(file_format, side):
    with pytest.raises(ValueError, match="another format"):
        encode(np.zeros((1, side, 3), np.float16), file_format, GENERATED, {})
    assert encode(np.zeros((1, side - 1, 3), np.float16), file_format, GENERATED, {}).data


@pytest.mark.parametrize("file_format", ["PNG", "jpg", "gif", "", None])
def test_another_format_is_refused(file_format):
    with pytest.raises(ValueError, match="Expected png, jpeg, webp"):
        encode(picture(), file_format, GENERATED, {})


@pytest.mark.parametrize("quality", [0, 101, -5, 90.0, "90", None])
def test_another_quality_is_refused(quality):
    with pytest.raises(ValueError, match="from 1 to 100"):
        encode(picture(), "jpeg", GENERATED, {}, quality)


@pytest.mark.parametrize("text", ["", "{", "a prompt", '"a\0b"', {"1": 2}, b"{}", None])
def test_metadata_that_is_no_json_text_is_refused(text):
    with pytest.raises(ValueError, match="'prompt' that is not JSON text"):
        encode(picture(), "png", GENERATED, {"prompt": text})


@pytest.mark.parametrize(("width", "height"), [(63, 200), (200, 63)])
def test_a_picture_too_small_for_the_label_is_refused(width, height):
    with pytest.raises(ValueError, match=f"{width}x{height} px.*at least 64 px"):
        encode(picture(height, width), "png", LABELLED, {})


@pytest.mark.parametrize("field", ["tool", "version"])
@pytest.mark.parametrize("text", ["", "a\nb", "a\0"])
def test_a_tool_without_a_printable_name_is_refused(field, text):
    with pytest.raises(ValueError, match=f"as the {field}"):
        replace(GENERATED, **{field: text})


def test_a_label_without_disclosure_is_refused():
    with pytest.raises(ValueError, match="label without disclosure"):
        replace(UNDISCLOSED, label=True)


def test_a_disclosure_does_not_change():
    with pytest.raises(FrozenInstanceError):
        GENERATED.source_type = None


def test_a_pillow_that_drops_the_mark_is_found_out(monkeypatch):
    """Pillow 10 takes xmp= for a JPEG and writes nothing."""
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda *arguments, xmp=None, **options: save(*arguments, **options))
    with pytest.raises(RuntimeError, match=f"Pillow {PIL.__version__} did not write the AI mark into the JPEG"):
        encode(picture(), "jpeg", GENERATED, {})
    assert encode(picture(), "jpeg", UNDISCLOSED, {}).data


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff"])
def test_what_is_no_picture_file_is_not_read(data):
    with pytest.raises(ValueError, match="no whole PNG, JPEG or WebP"):
        read(data)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_file_is_not_read(file_format):
    data = encode(picture(64, 64), file_format, GENERATED, METADATA).data
    with pytest.raises(ValueError, match="no whole PNG, JPEG or WebP"):
        read(data[: len(data) * 3 // 4])


def test_a_file_of_another_program_says_nothing():
    for file_format in FORMATS:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, file_format.upper())
        found = read(buffer.getvalue())
        assert (found.source_type, found.creator_tool, found.software, found.metadata) == (None, None, None, {})


def with_xmp(packet):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", xmp=packet)
    return buffer.getvalue()


RDF = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:q="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">{}</rdf:Description>'
    "</rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize(
    "element",
    [
        "<q:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture</q:DigitalSourceType>",
        '<q:DigitalSourceType rdf:resource="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"/>',
    ],
)
def test_xmp_as_other_programs_write_it_is_read(element):
    assert read(with_xmp(RDF.format(element).encode())).source_type == "digitalCapture"


@pytest.mark.parametrize(
    "packet",
    [
        b"not XML",
        b"<open>",
        b"\xff\xfe\x00",
        b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 100 + b'">]>' + RDF.format("&b;").encode(),
        RDF.format("<other><q:DigitalSourceType>of an ingredient</q:DigitalSourceType></other>").encode(),
    ],
)
def test_damaged_or_hostile_xmp_says_nothing(packet):
    assert read(with_xmp(packet)).source_type is None


def test_a_cameras_make_is_no_metadata():
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x010E] = "Canon", "EOS: 5D", "A title: with a colon"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    assert read(buffer.getvalue()).metadata == {}
