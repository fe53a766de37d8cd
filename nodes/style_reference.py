"""Krea Style Reference: one to three pictures, each with its own weight, beside the prompt."""

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..krea import style
from ..krea.recipe import REFERENCES, STYLE_DETAIL, STYLE_STRENGTH, STYLE_WEIGHT
from . import node_text
from .reference_attention import append_tokens, with_references
from .style_model import KreaStyleModel, StyleModel

FITS = {"pad": "keeps all of it", "crop": "takes the square in its middle", "squash": "ignores its proportions"}
STYLE, IMAGE_PROMPT, CUSTOM = "style", "image prompt", "custom"
WHOLE = 32  # tokens per side of the largest vision encoder, so as many as there are


class FluxKreaStyleReference(io.ComfyNode):
    """Puts up to three reference pictures beside a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        pictures = io.Autogrow.TemplateNames(
            io.Image.Input("picture", tooltip="A picture to take the style from, one per socket."),
            names=[f"picture_{number}" for number in range(1, REFERENCES + 1)],
            min=1,
        )
        return io.Schema(
            node_id="FluxKreaStyleReference",
            display_name="Krea Style Reference",
            category="Krea",
            description=(
                "Makes pictures of FLUX.1 Krea [dev] look like up to three reference pictures, mixed by weight, "
                "while the prompt still says what they show. Wire both outputs to Krea Sampler."
            ),
            search_aliases=["redux", "style transfer", "image prompt", "ip adapter", "reference image", "krea dev"],
            inputs=[
                io.Model.Input("model", tooltip="FLUX.1 Krea [dev] from Krea Model Loader, with or without LoRAs."),
                io.Conditioning.Input("conditioning", tooltip="The prompt that the pictures join: positive, usually."),
                KreaStyleModel.Input("style_model", tooltip="From Krea Style Model Loader."),
                io.Autogrow.Input(
                    "pictures",
                    template=pictures,
                    tooltip="One to three reference pictures; a free socket appears behind the last one.",
                ),
                *(
                    io.Float.Input(
                        f"weight_{number}",
                        optional=True,
                        default=STYLE_WEIGHT.default,
                        min=STYLE_WEIGHT.minimum,
                        max=STYLE_WEIGHT.maximum,
                        step=0.05,
                        tooltip=f"How much picture {number} counts beside the other pictures: of two, 1.0 and 0.5 mix "
                        "two to one. A single picture counts the same at any weight; 0 leaves a picture out.",
                    )
                    for number in range(1, REFERENCES + 1)
                ),
                io.Float.Input(
                    "strength",
                    optional=True,
                    default=STYLE_STRENGTH.default,
                    min=STYLE_STRENGTH.minimum,
                    max=STYLE_STRENGTH.maximum,
                    step=0.05,
                    tooltip="How much the pictures count beside the prompt: 0 not at all, 0.5 gives look and palette, "
                    "1 outweighs most prompts.",
                ),
                io.Combo.Input(
                    "use_as",
                    optional=True,
                    options=[STYLE, IMAGE_PROMPT, CUSTOM],
                    default=STYLE,
                    tooltip="style: few tokens, so that colours and texture come through but not the objects. "
                    "image prompt: every token, so that the content follows too (set strength near 1). custom: the "
                    "detail set below.",
                ),
                io.Int.Input(
                    "detail",
                    optional=True,
                    default=STYLE_DETAIL.default,
                    min=STYLE_DETAIL.minimum,
                    max=STYLE_DETAIL.maximum,
                    advanced=True,
                    tooltip="With use_as custom: the tokens per side that a picture is worth. 1 to 5 gives mood and "
                    "palette, 9 texture too, 27 every object. More tokens take longer; they do not pull harder.",
                ),
                io.Combo.Input(
                    "fit",
                    optional=True,
                    options=list(FITS),
                    default="pad",
                    tooltip="How a picture that is not square is looked at: "
                    + "; ".join(f"{name} {what}" for name, what in FITS.items())
                    + ".",
                ),
                io.Mask.Input(
                    "picture_mask",
                    optional=True,
                    tooltip="White: the part of the pictures that counts. One mask for all pictures, or one for each.",
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="White: where in the result the pictures act, stretched to the result. Elsewhere the "
                    "prompt alone decides.",
                ),
                io.Float.Input(
                    "start_percent",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the schedule the pictures begin to act: 0 is pure noise, 1 the finished "
                    "picture. A later start, about 0.2, leaves the composition to the prompt.",
                ),
                io.Float.Input(
                    "end_percent",
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the schedule the pictures cease to act. An earlier end, about 0.6, keeps fine "
                    "texture as the model draws it.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model that gives the pictures their weight, for Krea Sampler."),
                io.Conditioning.Output("conditioning", tooltip="The prompt with the pictures beside it."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        conditioning: list,
        style_model: StyleModel,
        pictures: dict[str, torch.Tensor | None],
        strength: float = STYLE_STRENGTH.default,
        use_as: str = STYLE,
        detail: int = STYLE_DETAIL.default,
        fit: str = "pad",
        picture_mask: torch.Tensor | None = None,
        region: torch.Tensor | None = None,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        **weights: float,
    ) -> io.NodeOutput:
        """pictures: (1, H, W, 3 or 4) each, 0..1, where alpha says how much counts. picture_mask: (1 or N, H, W)."""
        check_sockets({*pictures, *_sockets_of_graph(cls.hidden)})
        # By the number in the name, so that a weight stays with its picture when a socket between is empty.
        chosen = {
            number: picture
            for number in range(1, REFERENCES + 1)
            if (picture := pictures.get(f"picture_{number}")) is not None
        }
        own_weights = {number: weights.get(f"weight_{number}", STYLE_WEIGHT.default) for number in chosen}
        masks = _one_mask_each(picture_mask, len(chosen))
        check(model, conditioning, style_model, chosen, start_percent, end_percent)
        region = None if region is None else one_region(region)
        for (number, picture), mask in zip(chosen.items(), masks, strict=True):
            check_picture(f"picture_{number}", picture, mask)
        if strength == 0 or not any(own_weights.values()):
            return io.NodeOutput(model, conditioning)

        side = {STYLE: STYLE_DETAIL.default, IMAGE_PROMPT: WHOLE, CUSTOM: detail}[use_as]
        tokens, used = [], []
        for (number, picture), mask in zip(chosen.items(), masks, strict=True):
            if own_weights[number] > 0:
                grid, coverage = style_model.look(picture.float(), mask, fit)
                if not coverage.any():
                    raise ValueError(
                        f"Nothing of picture_{number} counts: with fit {fit}, what its mask and its transparency leave "
                        "lies outside of what is looked at. Paint another part, or choose fit pad."
                    )
                tokens.append(style.pool_tokens(grid, coverage, side))
                used.append(own_weights[number])
        biases = style.key_biases(strength, style_model.native_tokens, used, [len(own) for own in tokens])
        report = f"{len(tokens)} of {len(chosen)} pictures, " + " + ".join(str(len(own)) for own in tokens) + " tokens"
        logging.info("Krea Style Reference: %s", report)
        node_text.show(report, cls.hidden.unique_id)
        settings = {"start_percent": start_percent, "end_percent": end_percent, "region": region}
        return io.NodeOutput(
            with_references(model), append_tokens(conditioning, tokens, biases, **settings), ui={"text": [report]}
        )


def _sockets_of_graph(hidden) -> set[str]:
    """The picture sockets that the queued graph names: ComfyUI leaves out, without a word, those that there are not."""
    inputs = (hidden.prompt or {}).get(hidden.unique_id, {}).get("inputs", {})
    return {name.removeprefix("pictures.") for name in inputs if name.startswith("pictures.")}


def check_sockets(names: set[str]) -> None:
    """Refuse a fourth picture."""
    if extra := sorted(names - {f"picture_{number}" for number in range(1, REFERENCES + 1)}):
        raise ValueError(f"Krea Style Reference takes at most {REFERENCES} pictures; leave out {', '.join(extra)}.")


def check(model, conditioning: list, style_model: StyleModel, pictures: dict, start: float, end: float) -> None:
    """Refuse what would fail later with a worse message, or silently do nothing."""
    if not pictures:
        raise ValueError("No picture is wired. Wire a reference picture to picture_1 of Krea Style Reference.")
    if model.model.model_config.unet_config.get("image_model") != "flux":
        raise ValueError(
            f"Style references are for FLUX.1 models; the model wired in is {type(model.model).__name__}. Load "
            "flux1-krea-dev_fp8_scaled.safetensors with Krea Model Loader."
        )
    if not conditioning:
        raise ValueError("The conditioning is empty, so there is no prompt to join. Wire positive of Krea Prompt.")
    width = style_model.sizes.text_width
    for text, _ in conditioning:
        if text.shape[-1] != width:
            raise ValueError(
                f"The prompt has tokens of width {text.shape[-1]}, the style model gives {width}. Use the text "
                "encoders of FLUX.1 and flux1-redux-dev.safetensors together."
            )
    if start >= end:
        raise ValueError(
            f"The pictures act from {start:g} to {end:g} of the schedule, which is no step. Set start_percent below "
            "end_percent, or strength to 0 to leave them out."
        )


def one_region(region: torch.Tensor) -> torch.Tensor:
    """The (H, W) of a region in 0..1; refuses one that says nothing or two things."""
    region = region.float().reshape(-1, *region.shape[-2:])
    if len(region) != 1:
        raise ValueError(
            f"The region is a batch of {len(region)} masks; where pictures act is one mask. Pick one, or chain a node "
            "for each."
        )
    if not torch.isfinite(region).all():
        raise ValueError("The region has values that are no numbers (NaN or infinite). Paint it again, or unwire it.")
    region = region[0].clamp(0, 1)
    if not region.any():
        raise ValueError("The region is empty (all black), so the pictures would act nowhere. Paint it, or unwire it.")
    return region


def check_picture(name: str, picture: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Refuse a picture that cannot be one reference, or of which nothing would count."""
    if len(picture) != 1:
        raise ValueError(
            f"{name} holds a batch of {len(picture)} pictures; a reference is one picture. Pick one with "
            "ImageFromBatch, or wire up to three pictures to sockets of their own."
        )
    if picture.ndim != 4 or picture.shape[-1] not in (3, 4) or not picture.is_floating_point():
        raise ValueError(
            f"{name} is no picture: {tuple(picture.shape)} of {picture.dtype}; expected (1, height, width, 3 or 4) of "
            "numbers in 0..1, as Load Image gives it."
        )
    if not torch.isfinite(picture).all():
        raise ValueError(f"{name} has values that are no numbers (NaN or infinite). Load the picture again.")
    if picture.shape[-1] == 4 and not picture[..., 3].any():
        raise ValueError(f"{name} is fully transparent, so nothing of it would count. Use a picture with colours.")
    if mask is None:
        return
    if not torch.isfinite(mask).all():
        raise ValueError(f"The picture mask for {name} has values that are no numbers. Paint it again, or unwire it.")
    if not mask.any():
        raise ValueError(f"The picture mask for {name} is empty (all black). Paint what counts, or unwire the mask.")
    (height, width), (mask_height, mask_width) = picture.shape[1:3], mask.shape
    if abs(mask_width * height / (mask_height * width) - 1) > 0.02:
        raise ValueError(
            f"The picture mask for {name} is {mask_width}x{mask_height}, the picture {width}x{height}: they have other "
            "proportions. Make the mask from the same picture."
        )


def _one_mask_each(mask: torch.Tensor | None, pictures: int) -> list[torch.Tensor | None]:
    if mask is None:
        return [None] * pictures
    mask = mask.float().reshape(-1, *mask.shape[-2:]).clamp(0, 1)
    if len(mask) not in (1, pictures):
        raise ValueError(f"There are {len(mask)} picture masks for {pictures} pictures: give one for all, or one each.")
    return [mask[index % len(mask)] for index in range(pictures)]
