"""ComfyUI's sampling, with the shift of the picture's size, true CFG in a part of the schedule, one seed per image."""

import inspect

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import torch

from ..krea.guidance import SigmaInterval
from ..krea.noise import batch_noise
from .batch_preview import BatchPreview


def with_shift(model, mu: float):
    """A clone of `model` whose percent-to-sigma conversions use the shift `mu`, as the schedule does."""

    class ShiftedFlow(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        """FLUX time shift on rectified flow; ComfyUI composes its model samplings this way."""

    model_sampling = ShiftedFlow(model.model.model_config)
    model_sampling.set_parameters(shift=mu)
    model = model.clone()
    model.add_object_patch("model_sampling", model_sampling)
    return model


class TrueCfgGuider(comfy.samplers.CFGGuider):
    """ComfyUI's CFG guider with the scale acting in a part of the schedule; outside, one forward pass."""

    def set_conds(self, positive, negative) -> None:
        self.inner_set_conds({"positive": positive} | ({} if negative is None else {"negative": negative}))

    def set_cfg(self, cfg: float, start_percent: float, end_percent: float) -> None:
        super().set_cfg(cfg)
        percent_to_sigma = self.model_patcher.get_model_object("model_sampling").percent_to_sigma
        self.interval = SigmaInterval(percent_to_sigma(start_percent), percent_to_sigma(end_percent))

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 - the signature of ComfyUI
        cfg = self.cfg if timestep[0].item() in self.interval else 1.0
        negative = self.conds.get("negative")
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, self.conds["positive"], cfg, model_options, seed
        )


def sample_batch(
    guider: comfy.samplers.CFGGuider,
    latent: torch.Tensor,
    noise_mask: torch.Tensor | None,
    seeds: list[int],
    sampler_name: str,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """Sample (B, C, H, W) `latent`, image i from `seeds[i]`, all at once where images do not influence each other.

    Args:
        noise_mask: 1 where the picture is made anew, with one entry or one per image; None for everywhere.
    """
    sampler = comfy.samplers.sampler_object(sampler_name)
    size = 1 if couples_images(sampler_name) else len(latent)
    preview = BatchPreview(guider.model_patcher, latent, len(sigmas) - 1, runs=len(latent) // size)
    results = []
    # Some samplers seed or draw from the global RNG (ddim with a mask does): it is put back as it was.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for first in range(0, len(latent), size):
            part = slice(first, first + size)
            mask = noise_mask[part] if noise_mask is not None and len(noise_mask) == len(latent) else noise_mask
            results.append(
                guider.sample(
                    batch_noise(latent[part].shape, seeds[part]).to(latent.dtype),
                    latent[part],
                    sampler,
                    sigmas,
                    denoise_mask=mask,
                    callback=preview.callback(first),
                    disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                    seed=seeds[first],
                )
            )
    return torch.cat(results).to(
        comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype()
    )


def couples_images(sampler_name: str) -> bool:
    """Whether the images of a batch influence each other in this sampler.

    Noise added on the way is drawn for the batch as a whole, dpm_adaptive chooses its steps by the error of the
    whole batch, and ddim refills the masked part with noise of its own.
    """
    function = getattr(comfy.k_diffusion.sampling, f"sample_{sampler_name}", None)
    adds_noise = function is not None and "noise_sampler" in inspect.signature(function).parameters
    return adds_noise or sampler_name in ("dpm_adaptive", "ddim")
