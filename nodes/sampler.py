"""Krea Sampler: the model's own schedule and guidance, one seed per image, optional true CFG."""

import logging

import comfy.sample
import comfy.samplers
import node_helpers
import torch
from comfy_api.latest import io

from ..krea import recipe
from ..krea.schedule import flow_sigmas, shift_mu, token_count
from ..krea.seeds import SEED_COUNT, batch_seeds
from . import node_text
from .sampling import CFG_PP, TrueCfgGuider, sample_batch, steers_by_negative, with_shift


class FluxKreaSampler(io.ComfyNode):
    """Samples a batch with the FLUX.1 Krea [dev] recipe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FluxKreaSampler",
            display_name="Krea Sampler",
            category="Krea",
            description=(
                "Makes the picture with FLUX.1 Krea [dev]'s own recipe: guidance 4.5, 28 steps, and noise levels "
                "that follow the picture's size. Each image of a batch has its own seed, so any one can be made "
                "again."
            ),
            search_aliases=["flux sampler", "krea dev", "guidance", "true cfg", "negative prompt"],
            inputs=[
                io.Model.Input("model", tooltip="FLUX.1 Krea [dev] from Krea Model Loader, with or without LoRAs."),
                io.Conditioning.Input("positive", tooltip="What the picture shows, from Krea Prompt."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The size and number of pictures, from Krea Aspect-Ratio Latent. For image to image, "
                    "an encoded picture; with a mask set on it, only the masked part is painted anew.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to keep out of the picture. Acts only where true CFG is above 1.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEED_COUNT - 1,
                    control_after_generate=True,
                    tooltip="Picks the picture. Image i of a batch is the picture that seed + i makes alone "
                    "(counted from 0).",
                ),
                io.Int.Input(
                    "steps",
                    default=recipe.STEPS.default,
                    min=recipe.STEPS.minimum,
                    max=recipe.STEPS.maximum,
                    tooltip="More steps settle fine detail and take longer in proportion. 28 to 32 is what the "
                    "model was made for.",
                ),
                io.Float.Input(
                    "guidance",
                    default=recipe.GUIDANCE.default,
                    min=recipe.GUIDANCE.minimum,
                    max=recipe.GUIDANCE.maximum,
                    step=0.1,
                    tooltip="How closely the picture follows the prompt. 4 to 5 is freer and more natural, 6 to 8 "
                    "closer to the prompt with harder contrast.",
                ),
                io.Float.Input(
                    "true_cfg",
                    optional=True,
                    display_name="true CFG",
                    default=recipe.TRUE_CFG.default,
                    min=recipe.TRUE_CFG.minimum,
                    max=recipe.TRUE_CFG.maximum,
                    step=0.1,
                    tooltip="Pushes the picture away from the negative prompt. 1 is off; 1.5 to 3 is usual, more "
                    "burns colours. Steps on which it acts take twice as long.",
                ),
                io.Float.Input(
                    "true_cfg_start",
                    optional=True,
                    display_name="true CFG start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the schedule true CFG begins to act: 0 is pure noise, 1 the finished picture. "
                    "A later start leaves the composition alone.",
                ),
                io.Float.Input(
                    "true_cfg_end",
                    optional=True,
                    display_name="true CFG end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the schedule true CFG ceases to act: 0 is pure noise, 1 the finished picture. "
                    "An earlier end saves time and keeps fine texture as the model draws it.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    optional=True,
                    display_name="sampler",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default=recipe.SAMPLER,
                    advanced=True,
                    tooltip="How the steps are taken. Euler is what the model was made for; others may draw texture "
                    "differently. Ones that add noise on the way sample a batch one image after the other.",
                ),
                io.Float.Input(
                    "start_sigma",
                    optional=True,
                    display_name="start sigma",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How much noise the input picture begins with: 1 forgets it (text to image), 0.85 keeps "
                    "its layout, 0.6 its shapes, 0.3 only retouches. All steps are run from there.",
                ),
                io.Boolean.Input(
                    "guidance_embed",
                    optional=True,
                    display_name="guidance embed",
                    default=True,
                    label_on="on",
                    label_off="off",
                    advanced=True,
                    tooltip="Off leaves the guidance input of the model empty. For fine-tunes that were trained "
                    "without it; FLUX.1 Krea [dev] itself then follows the prompt less.",
                ),
            ],
            outputs=[io.Latent.Output("latent", tooltip="The finished latents, for VAE Decode.")],
            hidden=[io.Hidden.unique_id],
            # ComfyUI keys its cache by node only when told; the text on the node belongs to this node alone.
            not_idempotent=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        latent_image,
        seed: int,
        steps: int,
        guidance: float,
        negative=None,
        true_cfg: float = recipe.TRUE_CFG.default,
        true_cfg_start: float = 0.0,
        true_cfg_end: float = 1.0,
        sampler_name: str = recipe.SAMPLER,
        start_sigma: float = 1.0,
        guidance_embed: bool = True,
    ) -> io.NodeOutput:
        """Sample every image of `latent_image` ((B, 16, H, W), 8 px per latent pixel).

        Raises:
            ValueError: a model that is not FLUX.1, a latent that does not fit it, a start sigma below 1 without a
                picture, true CFG without a negative prompt or on no step.
        """
        check_inputs(model, latent_image["samples"], start_sigma)
        samples = comfy.sample.fix_empty_latent_channels(
            model, latent_image["samples"], latent_image.get("downscale_ratio_spacial")
        )
        seeds = batch_seeds(seed, len(samples), latent_image.get("batch_index"))
        mu = shift_mu(token_count(*samples.shape[-2:]))
        sigmas = flow_sigmas(steps, mu, start_sigma)

        guider = TrueCfgGuider(with_shift(model, mu), true_cfg, true_cfg_start, true_cfg_end)
        uses_negative = guider.uses_negative(sampler_name)
        check_true_cfg(guider, sampler_name, negative, sigmas)
        values = {"guidance": guidance if guidance_embed else None}
        used = (positive, negative if uses_negative else None)
        conditionings = [c and node_helpers.conditioning_set_values(c, values) for c in used]

        report = describe(seeds, sigmas, mu, values["guidance"], guider)
        if negative is not None and not uses_negative:
            report += "; true CFG is 1: the negative prompt does nothing"
        logging.info("Krea Sampler: %s", report)
        node_text.show(report, cls.hidden.unique_id)
        noise_mask = latent_image.get("noise_mask")
        result = sample_batch(guider, *conditionings, samples, noise_mask, seeds, sampler_name, sigmas)

        out = {k: v for k, v in latent_image.items() if not k.startswith("downscale_ratio")}
        return io.NodeOutput(out | {"samples": result}, ui={"text": [report], "seeds": seeds})


def check_inputs(model, latent: torch.Tensor, start_sigma: float) -> None:
    """Refuse what would fail later with a worse message, or silently make another picture."""
    shape = model.model.model_config.unet_config
    # Other families (FLUX.2, Chroma, LongCat) are built on ComfyUI's Flux class, so the class does not tell.
    if shape.get("image_model") != "flux" or shape.get("vec_in_dim", 768) is None:
        raise ValueError(
            f"Krea Sampler samples FLUX.1 models; the model wired in is {type(model.model).__name__}. "
            "Load flux1-krea-dev_fp8_scaled.safetensors with Krea Model Loader, or use KSampler for this model."
        )
    is_empty = torch.count_nonzero(latent) == 0
    if latent.ndim != 4 or (latent.shape[1] != 16 and not is_empty):
        raise ValueError(
            f"The latent has the shape {tuple(latent.shape)}; FLUX.1 needs (images, 16, height / 8, width / 8). "
            "Encode the picture with the FLUX.1 VAE (ae.safetensors), or start from Krea Aspect-Ratio Latent."
        )
    if is_empty and start_sigma < 1.0:
        raise ValueError(
            f"The start sigma is {start_sigma:g}, which keeps part of an input picture, but the latent is empty. Set "
            "start sigma to 1 (text to image), or wire a picture through VAE Encode."
        )


def check_true_cfg(guider: TrueCfgGuider, sampler_name: str, negative, sigmas: torch.Tensor) -> None:
    """Refuse true CFG that would silently do nothing, or push away from nothing."""
    if negative is None and guider.cfg != 1.0:
        raise ValueError(
            f"True CFG is {guider.cfg:g}, but no negative prompt is wired. Wire the negative output of Krea Prompt "
            "to this node, or set true CFG to 1 (off)."
        )
    if negative is None and steers_by_negative(sampler_name):
        raise ValueError(
            f"The sampler {sampler_name} steers by the negative prompt, but none is wired. Wire the negative output "
            f"of Krea Prompt to this node, or choose {sampler_name.removesuffix(CFG_PP)}."
        )
    if guider.cfg != 1.0 and guider.steps_inside(sigmas) == 0:
        raise ValueError(
            f"True CFG is {guider.cfg:g}, but none of the {len(sigmas) - 1} steps lies between its start and end "
            f"(the steps run from sigma {sigmas[0]:.3g} to 0, true CFG acts from {guider.interval.start:.3g} to "
            f"{guider.interval.end:.3g}). Widen the part of the schedule, or set true CFG to 1 (off)."
        )


def describe(seeds: list[int], sigmas: torch.Tensor, mu: float, guidance: float | None, guider: TrueCfgGuider) -> str:
    """The effective settings, for the node, the log and headless users."""
    steps = len(sigmas) - 1
    parts = [f"seed {seeds[0]}" if len(seeds) == 1 else "seeds " + ", ".join(map(str, seeds))]
    parts.append(f"{steps} steps from sigma {sigmas[0]:.3g}, shift mu {mu:.3f}")
    parts.append("guidance off" if guidance is None else f"guidance {guidance:g}")
    if guider.cfg != 1.0:
        parts.append(f"true CFG {guider.cfg:g} on {guider.steps_inside(sigmas)} of {steps} steps")
    return "; ".join(parts)
