"""The sampling preview: every image of the batch side by side (ComfyUI's own shows only the first)."""

import math

import comfy.utils
import latent_preview
import torch
from PIL import Image


def contact_sheet(images: list[Image.Image | None]) -> Image.Image:
    """Images of one size on a near-square grid, in reading order; None leaves a place black."""
    columns = math.ceil(math.sqrt(len(images)))
    width, height = next(image for image in images if image is not None).size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for index, image in enumerate(images):
        if image is not None:
            sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


class BatchPreview:
    """Progress and previews of one sampler run, whether its images are sampled together or one by one.

    Args:
        model: the patched model that is sampled.
        batch_size: images in the batch; those that have not begun are black.
        steps: sampling steps of one image.
        runs: sampler calls that the batch takes, 1 or `batch_size`.
    """

    def __init__(self, model, batch_size: int, steps: int, runs: int):
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self._progress = comfy.utils.ProgressBar(steps * runs)
        self._tiles: list[Image.Image | None] = [None] * batch_size
        self._steps, self._total = steps, steps * runs

    def callback(self, first_image: int = 0):
        """A sampler callback for a run whose first image is number `first_image` of the batch."""

        def report(step: int, denoised: torch.Tensor, _x: torch.Tensor, _total_steps: int) -> None:
            # A run is one image here unless it is the whole batch, which starts at image 0.
            done = first_image * self._steps + step + 1
            self._progress.update_absolute(done, self._total, self._sheet(first_image, denoised))

        return report

    def _sheet(self, first_image: int, denoised: torch.Tensor) -> tuple[str, Image.Image, int] | None:
        """The preview with new `denoised` latents (images, 16, H, W), as ComfyUI's progress bar takes it."""
        if self._previewer is None:
            return None
        for index, latent in enumerate(denoised.split(1), first_image):
            image_format, tile, largest_side = self._previewer.decode_latent_to_preview_image("JPEG", latent)
            self._tiles[index] = tile
        return image_format, contact_sheet(self._tiles), largest_side
