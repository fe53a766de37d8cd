"""The LLM tool without a ComfyUI: what a model gets of an answer, and the package that the tool needs."""

import base64
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from krea_client import errors, mcp_server
from krea_client.result import Picture, Result, Server, Timings

NOISE = np.random.default_rng(0).integers(0, 256, (1400, 2000, 4), np.uint8)
URI = "data:image/png;base64," + "A" * 5000


def result(*paths):
    asked = {"prompt": "a wall", "style_references": [{"image": URI}], "seed": 1}
    shown = {
        "guidance_scale": 4.5,
        "num_inference_steps": 28,
        "true_cfg_scale": 1,
        "aspect_ratio": "1:1",
        "size": "8x8",
    }
    return Result(
        status="done",
        job_id="a job",
        pictures=[Picture(path=str(path), seed=1, width=2000, height=1400) for path in paths],
        request=asked,
        settings=asked | shown,
        models={},
        timings=Timings(queued=0, ran=1, total=1),
        server=Server(url="http://localhost", comfyui="0.30.0", pack="0.1.0", device="cpu"),
    )


@pytest.mark.parametrize("name", ["noise.png", "noise.webp", "noise.jpg"])
def test_a_preview_is_small_whatever_the_picture(tmp_path, name):
    Image.fromarray(NOISE[..., : 3 if name.endswith("jpg") else 4]).save(tmp_path / name)
    _, preview = mcp_server.tool_result(result(tmp_path / name)).content
    data = base64.b64decode(preview.data)
    with Image.open(io.BytesIO(data)) as picture:
        assert (preview.mime_type, picture.format) == ("image/jpeg", "JPEG")
        assert max(picture.size) in (256, 512) and picture.width > picture.height
    assert len(data) <= mcp_server.PREVIEW_BYTES


def test_a_picture_that_was_moved_away_has_no_preview(tmp_path):
    assert [each.type for each in mcp_server.tool_result(result(tmp_path / "gone.png")).content] == ["text"]


def test_a_reference_picture_is_not_told_back(tmp_path):
    told = mcp_server.tool_result(result()).structured_content
    for where in (told["request"], told["settings"]):
        assert where["style_references"][0]["image"] == "data:image/png;base64,AAAAAAAAAAAAAAAAAA..."
        assert where["prompt"] == "a wall"


def test_a_missing_package_is_named(root, tmp_path):
    hidden = "import sys; sys.modules['mcp'] = None; from krea_client.cli import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", hidden, "mcp", "--out", str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == errors.ExtraMissing.exit_code and run.stdout == ""
    assert 'pip install ".[mcp]"' in run.stderr
