"""The sampling preview: every image of the batch side by side (ComfyUI's own shows only the first)."""

import math

import comfy.utils
import latent_preview
import torch
from PIL import Image


def contact_sheet(images: list[Image.Image]) -> Image.Image:
    """Images of one size on a near-square grid, in reading order."""
    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


class BatchPreview:
    """Progress and previews of one sampler run, whether its images are sampled together or one by one.

    Args:
        model: the patched model that is sampled.
        latent: the batch at the start, (B, C, H, W); images that have not begun are shown as they are here.
        steps: sampling steps of one image.
        runs: sampler calls that the batch takes, 1 or B.
    """

    def __init__(self, model, latent: torch.Tensor, steps: int, runs: int):
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self._progress = comfy.utils.ProgressBar(steps * runs)
        self._denoised = list(latent.split(1))
        self._total = steps * runs
        self._steps = steps

    def callback(self, first_image: int = 0):
        """A sampler callback for a run whose first image is number `first_image` of the batch."""

        def report(step: int, denoised: torch.Tensor, _x: torch.Tensor, _total_steps: int) -> None:
            self._denoised[first_image : first_image + len(denoised)] = denoised.split(1)
            # A run is one image here unless it is the whole batch, which starts at image 0.
            done = first_image * self._steps + step + 1
            self._progress.update_absolute(done, self._total, self._sheet())

        return report

    def _sheet(self) -> tuple[str, Image.Image, int] | None:
        if self._previewer is None:
            return None
        tiles = [self._previewer.decode_latent_to_preview_image("JPEG", x) for x in self._denoised]
        image_format, _, largest_side = tiles[0]
        return image_format, contact_sheet([tile[1] for tile in tiles]), largest_side
