"""The jobs that the tests give to the client: the pictures that krea-mini was trained for, in few steps."""

import numpy as np
from PIL import Image

from dev.host import ComfyHost
from krea_client import Request

SMALL = {"aspect_ratio": "1:1", "megapixels": 0.0625, "num_inference_steps": 15, "texture_enhancement": False}
PLAIN = {"content_filter": "off", "disclosure": "none"}


def small(**values) -> Request:
    return Request(**SMALL | {"prompt": "a red circle on a blue background", "seed": 5} | values)


def pixels(file) -> np.ndarray:
    """The picture (H, W, 3) of a path or an open file, in 0..255."""
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def saved(host: ComfyHost, job_id: str):
    """The files that the server has saved for a job."""
    return sorted((host.output_dir / "flux_krea").glob(f"{job_id}*"))


def runs(host: ComfyHost) -> int:
    """How many jobs the server has taken since it was started."""
    return host.log_text().count("got prompt")
