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

CFG_PP = "_cfg_pp"


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
    """ComfyUI's CFG guider with the scale acting in a part of the schedule; outside, one forward pass.

    Args:
        start_percent, end_percent: the part, from 0 (pure noise) to 1 (the finished picture).
    """

    def __init__(self, model, cfg: float, start_percent: float, end_percent: float):
        super().__init__(model)
        self.set_cfg(cfg)
        percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma
        self.interval = SigmaInterval(percent_to_sigma(start_percent), percent_to_sigma(end_percent))

    def steps_inside(self, sigmas: torch.Tensor) -> int:
        """How many of the steps of a schedule start where the scale acts."""
        return sum(sigma.item() in self.interval for sigma in sigmas[:-1])

    def uses_negative(self, sampler_name: str) -> bool:
        """Whether the negative prompt has any effect: some samplers and model patches want it at a scale of 1 too."""
        patched = self.model_options.get("disable_cfg1_optimization", False)
        return self.cfg != 1.0 or steers_by_negative(sampler_name) or patched

    def set_conds(self, positive, negative) -> None:
        self.inner_set_conds({"positive": positive} | ({} if negative is None else {"negative": negative}))

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 - the signature of ComfyUI
        cfg = self.cfg if timestep[0].item() in self.interval else 1.0
        negative = self.conds.get("negative")
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, self.conds["positive"], cfg, model_options, seed
        )


def conditioning_of_image(conditioning: list | None, index: int) -> list | None:
    """What one image of a batch is made from, where prompts, masks or ControlNet pictures are given one per image.

    Fewer of them than images are used in turn, as ComfyUI does.
    """
    if conditioning is None:
        return None
    entries = []
    for text, values in conditioning:
        values = values.copy()
        for name in values.keys() & {"pooled_output", "mask"}:
            values[name] = _entry(values[name], index)
        if "control" in values:
            values["control"] = _control_of_image(values["control"], index)
        entries.append([_entry(text, index), values])
    return entries


def _entry(tensor: torch.Tensor | None, index: int) -> torch.Tensor | None:
    """Entry `index` of a batch, kept as a batch of one."""
    return None if tensor is None else tensor[index % len(tensor)][None]


def _control_of_image(control, index: int):
    if control is None:
        return None
    own = control.copy()  # which leaves out the ControlNet before it
    own.cond_hint_original = _entry(control.cond_hint_original, index)
    return own.set_previous_controlnet(_control_of_image(control.previous_controlnet, index))


def sample_batch(
    guider: TrueCfgGuider,
    positive: list,
    negative: list | None,
    latent: torch.Tensor,
    noise_mask: torch.Tensor | None,
    seeds: list[int],
    sampler_name: str,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """Sample (B, C, H, W) `latent`, image i from `seeds[i]`, all at once where images do not influence each other.

    Args:
        positive, negative: ComfyUI conditionings; the negative one is None where nothing uses it.
        noise_mask: (masks, [1,] H, W), 1 where the picture is made anew; fewer masks than images are repeated in
            turn, as ComfyUI does. None for everywhere.
    """
    sampler = comfy.samplers.sampler_object(sampler_name)
    size = 1 if couples_images(sampler_name) else len(latent)
    preview = BatchPreview(guider.model_patcher, len(latent), len(sigmas) - 1, runs=len(latent) // size)
    if noise_mask is not None:
        noise_mask = noise_mask.reshape(-1, 1, *noise_mask.shape[-2:])
        noise_mask = comfy.utils.repeat_to_batch_size(noise_mask, len(latent))
    results = []
    # Some samplers seed or draw from the global RNG (ddim with a mask does): it is put back as it was.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for first in range(0, len(latent), size):
            part = slice(first, first + size)
            one_by_one = size < len(latent)
            guider.set_conds(*(conditioning_of_image(c, first) if one_by_one else c for c in (positive, negative)))
            results.append(
                guider.sample(
                    batch_noise(latent[part].shape, seeds[part]).to(latent.dtype),
                    latent[part],
                    sampler,
                    sigmas,
                    denoise_mask=None if noise_mask is None else noise_mask[part],
                    callback=preview.callback(first),
                    disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                    seed=seeds[first],
                )
            )
    return torch.cat(results).to(comfy.model_management.intermediate_device())


def steers_by_negative(sampler_name: str) -> bool:
    """Whether a sampler takes its steps from the negative prompt's prediction, whatever the scale (CFG++)."""
    return sampler_name.endswith(CFG_PP)


def couples_images(sampler_name: str) -> bool:
    """Whether the images of a batch influence each other in this sampler.

    Noise added on the way is drawn for the batch as a whole, dpm_adaptive chooses its steps by the error of the
    whole batch, and ddim refills the masked part with noise of its own.
    """
    function = vars(comfy.k_diffusion.sampling).get(f"sample_{sampler_name}")
    adds_noise = function is not None and "noise_sampler" in inspect.signature(function).parameters
    return adds_noise or sampler_name in ("dpm_adaptive", "ddim")
