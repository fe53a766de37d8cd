"""A grid: every combination of some settings as a picture, and one labelled sheet that shows them side by side."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from krea import files

from .errors import CannotSave, InvalidRequest
from .request import Request
from .result import Result

if TYPE_CHECKING:
    from PIL.Image import Image

AXES = {
    "guidance_scale": "guidance",
    "num_inference_steps": "steps",
    "seed": "seed",
    "style_reference_weight": "style weight",
}
"""Fields of a request that a grid can vary, and what the sheet calls them."""

MOST_CELLS = 100
CELL = 384  # px, the longer side of a picture on the sheet
MARGIN, LINE = 12, 20  # px
_INK, _PAPER, _EMPTY = "#222222", "#ffffff", "#dddddd"


class Cell(NamedTuple):
    """One picture of a grid: where it stands, what makes it, and what it says there."""

    row: int
    column: int
    request: Request
    label: str


def cells(values: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Every combination of the values of the axes, row by row, beside the other `values` of the request.

    The axis with the most values runs across; the others make the rows. An axis of one value is a setting. A request
    without a seed gets the seed 0, so that only the axes differ.

    Raises InvalidRequest: nothing varies, a value out of its range, more than 100 pictures, style weights without
    references or beside weights of their own.
    """
    axes = {name: list(dict.fromkeys(values)) for name, values in axes.items()}
    fixed = {"seed": 0} | dict(values) | {name: values[0] for name, values in axes.items()} | {"num_images": 1}
    axes = {name: values for name, values in axes.items() if len(values) > 1}
    request = Request.read(fixed)
    if not axes:
        flags = ", ".join("--" + name.replace("_", "-") for name in AXES)
        raise InvalidRequest(f"Nothing to compare. Give several values to some of {flags}.")
    if "style_reference_weight" in axes:
        if not request.style_references:
            raise InvalidRequest("The grid varies style_reference_weight, but there is no style reference.")
        if any(each.weight is not None for each in request.style_references):
            raise InvalidRequest(
                "The grid varies style_reference_weight, but a style reference has a weight of its own, which does not "
                "vary. Give the references without weights."
            )
    across = max(axes, key=lambda name: len(axes[name]))
    down = [name for name in axes if name != across]
    rows = list(itertools.product(*(axes[name] for name in down)))
    if len(rows) * len(axes[across]) > MOST_CELLS:
        raise InvalidRequest(f"The grid has {len(rows) * len(axes[across])} pictures. Expected at most {MOST_CELLS}.")
    made = []
    for (row, beside), (column, value) in itertools.product(enumerate(rows), enumerate(axes[across])):
        varied = dict(zip(down, beside, strict=True)) | {across: value}
        label = ", ".join(f"{AXES[name]} {varied[name]}" for name in axes)
        made.append(Cell(row, column, request.changed(**varied), label))
    return made


def save(grid: Sequence[Cell], results: Sequence[Result], folder: Path) -> Path:
    """Draws the sheet and writes it into the folder; a cell that the filter kept back stays grey.

    Raises CannotSave.
    """
    data = io.BytesIO()
    draw(grid, [result.paths[0] if result.paths else None for result in results]).save(data, "PNG")
    for number in itertools.count(1):
        path = folder / f"krea_grid_{number:03}.png"
        try:
            files.create(path, data.getvalue())
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise CannotSave(f"{path} could not be written: {error.strerror}. Its pictures are in {folder}.") from None


def draw(grid: Sequence[Cell], paths: Sequence[str | None]) -> Image:
    """The sheet: pictures of one size with their settings beneath."""
    from PIL import Image, ImageDraw, ImageFont

    size = grid[0].request.frame.size
    scale = CELL / max(size)
    width, height = round(size.width * scale), round(size.height * scale)
    step_x, step_y = width + MARGIN, height + LINE + MARGIN
    columns, rows = (1 + max(getattr(cell, axis) for cell in grid) for axis in ("column", "row"))
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for cell, path in zip(grid, paths, strict=True):
        x, y = MARGIN + cell.column * step_x, MARGIN + cell.row * step_y
        if path is None:
            pen.rectangle((x, y, x + width, y + height), _EMPTY)
            pen.text((x + 8, y + 8), "kept back by the content filter", _INK, font)
        else:
            with Image.open(path) as picture:
                sheet.paste(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (x, y))
        pen.text((x, y + height + 2), cell.label, _INK, font)
    return sheet
