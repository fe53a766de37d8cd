import json
from pathlib import Path

import pytest
from PIL import Image

from krea_client.errors import CannotSave, InvalidRequest
from krea_client.grid import CELL, cells, save
from krea_client.result import Picture, Result, Server, Timings


def result(path: Path | None) -> Result:
    return Result(
        status="done" if path else "blocked",
        job_id="",
        pictures=[Picture(seed=0, path=path and str(path))],
        request={},
        settings={},
        models={},
        timings=Timings(queued=0, ran=0, total=0),
        server=Server(url="", comfyui="", pack="", device=""),
    )


def test_every_combination_is_made_once_and_the_longest_axis_runs_across():
    grid = cells({"prompt": "a"}, {"guidance_scale": [3, 4.5], "num_inference_steps": [20], "seed": [1, 2, 3]})
    assert [(cell.row, cell.column, cell.label) for cell in grid] == [
        (0, 0, "guidance 3, seed 1"),
        (0, 1, "guidance 3, seed 2"),
        (0, 2, "guidance 3, seed 3"),
        (1, 0, "guidance 4.5, seed 1"),
        (1, 1, "guidance 4.5, seed 2"),
        (1, 2, "guidance 4.5, seed 3"),
    ]
    assert {cell.request.num_inference_steps for cell in grid} == {20}
    assert [cell.request.seed for cell in grid] == [1, 2, 3, 1, 2, 3]


def test_without_a_seed_all_pictures_have_the_same_one():
    assert {cell.request.seed for cell in cells({"prompt": "a"}, {"guidance_scale": [3, 4, 5]})} == {0}


def test_three_axes_make_a_row_for_each_pair_of_the_shorter_ones():
    grid = cells(
        {"prompt": "a", "style_references": ["b.png"]},
        {"guidance_scale": [3, 4], "seed": [1, 2, 3], "style_reference_weight": [0.3, 0.7]},
    )
    assert (max(cell.row for cell in grid), max(cell.column for cell in grid)) == (3, 2)


def test_style_weights_are_not_varied_beside_a_weight_of_a_references_own():
    values = {"prompt": "a", "style_references": ["b.png", "c.png@0.9"]}
    with pytest.raises(InvalidRequest, match="a weight of its own"):
        cells(values, {"style_reference_weight": [0.3, 0.7]})
    assert len(cells(values, {"seed": [1, 2]})) == 2


def test_the_sheet_shows_each_picture_in_its_place(tmp_path):
    grid = cells({"prompt": "a", "aspect_ratio": "1:1"}, {"seed": [1, 2]})
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    path = save(grid, [result(tmp_path / "red.png"), result(None)], tmp_path)
    with Image.open(path) as sheet:
        assert sheet.getpixel((12 + CELL // 2, 12 + CELL // 2)) == (255, 0, 0)
        assert sheet.getpixel((24 + CELL + CELL // 2, 12 + CELL // 2)) == (221, 221, 221)
        assert sheet.size == (2 * CELL + 36, CELL + 44)


def test_a_sheet_is_never_written_over_another(tmp_path):
    grid = cells({"prompt": "a"}, {"seed": [1, 2]})
    names = [save(grid, [result(None)] * 2, tmp_path).name for _ in range(2)]
    assert names == ["krea_grid_001.png", "krea_grid_002.png"]


def test_a_folder_that_takes_no_sheet_is_named(tmp_path):
    grid = cells({"prompt": "a"}, {"seed": [1, 2]})
    with pytest.raises(CannotSave, match="gone"):
        save(grid, [result(None)] * 2, tmp_path / "gone")


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    from krea_client.delivery import read

    written = result(tmp_path / "red.png")
    (tmp_path / "a.json").write_text(json.dumps(written.model_dump(mode="json")))
    assert read(tmp_path / "a.json") == written
