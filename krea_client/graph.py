"""The graph of a request, in ComfyUI's API format: the wiring of the bundled workflows with the request's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krea import aspect_ratio as sizes
from krea import recipe
from krea.model_file.catalogue import Slot

from .request import Request

Graph = dict[str, dict[str, Any]]
"""Node id -> {"class_type": ..., "inputs": {...}}; a link is [node id, number of its output]."""

LOADER_INPUTS = {
    "FluxKreaModelLoader": {
        "diffusion_model": Slot.DIFFUSION_MODEL,
        "text_encoder_1": Slot.CLIP_L,
        "text_encoder_2": Slot.T5,
        "vae": Slot.VAE,
    },
    "FluxKreaStyleModelLoader": {"vision_encoder": Slot.VISION, "adapter": Slot.REDUX},
}
"""The inputs that name model files, and what each is for."""

# The ids of the nodes whose answers the client reads.
SAMPLER, SAVE, PROMPT_FILTER, PROMPT = "sampler", "save", "prompt_filter", "prompt"


def slots(request: Request) -> list[Slot]:
    """What model files the request needs."""
    loaders = ["FluxKreaModelLoader"] + (["FluxKreaStyleModelLoader"] if request.images else [])
    return [slot for loader in loaders for slot in LOADER_INPUTS[loader].values()]


def build(request: Request, files: Mapping[Slot, str], pictures: Mapping[str, str], prefix: str) -> Graph:
    """The graph of a request that has a seed.

    Args:
        files: the name of each model file on the server, for all of `slots(request)`.
        pictures: reference picture as the request names it -> its name in the server's input folder.
        prefix: the beginning of the saved files' names, as Save Image takes it.
    """
    graph: Graph = {}

    def add(name: str, class_type: str, **inputs: Any) -> None:
        graph[name] = {"class_type": class_type, "inputs": inputs}

    def loader(name: str, class_type: str) -> None:
        add(name, class_type, **{key: files[slot] for key, slot in LOADER_INPUTS[class_type].items()})

    filtered = request.content_filter != "off"
    words = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    loader("models", "FluxKreaModelLoader")
    if filtered:
        judges = {} if request.content_filter == "judge" else {"open_nsfw": False, "word_lists": False}
        add("filter", "FluxKreaContentFilterLoader", **judges)
        add(PROMPT_FILTER, "FluxKreaPromptFilter", filter=["filter", 0], **words)
        words = {"prompt": [PROMPT_FILTER, 0], "negative_prompt": [PROMPT_FILTER, 1]}
    # Without words there is nothing that the sentences about texture could follow.
    texture = request.texture_enhancement and bool(request.prompt.strip())
    add(PROMPT, "FluxKreaPrompt", clip=["models", 1], texture_enhancement=texture, **words)
    size = {"resolution": request.resolution}
    if request.megapixels is not None:
        size = {"resolution": sizes.CUSTOM, "custom_megapixels": request.megapixels}
    add(
        "latent",
        "FluxKreaAspectRatioLatent",
        aspect_ratio=request.aspect_ratio,
        batch_size=request.num_images,
        **size,
    )

    model, positive = ["models", 0], [PROMPT, 0]
    if request.images:
        loader("style_model", "FluxKreaStyleModelLoader")
    for name, images, settings in _references(request):
        references = {}
        for number, image in enumerate(images, 1):
            add(f"{name}_picture_{number}", "LoadImage", image=pictures[image])
            references[f"pictures.picture_{number}"] = [f"{name}_picture_{number}", 0]
        add(
            name,
            "FluxKreaStyleReference",
            model=model,
            conditioning=positive,
            style_model=["style_model", 0],
            **references,
            **settings,
        )
        model, positive = [name, 0], [name, 1]

    add(
        SAMPLER,
        "FluxKreaSampler",
        model=model,
        positive=positive,
        negative=[PROMPT, 1],
        latent_image=["latent", 0],
        seed=request.seed,
        steps=request.num_inference_steps,
        guidance=request.guidance_scale,
        true_cfg=request.true_cfg_scale,
    )
    add("decode", "VAEDecode", samples=[SAMPLER, 0], vae=["models", 2])
    images = ["decode", 0]
    if request.frame.upscale_factor != 1:
        add("upscale", "ImageScaleBy", image=images, upscale_method="lanczos", scale_by=request.frame.upscale_factor)
        images = ["upscale", 0]
    if filtered:
        add(
            SAVE,
            "FluxKreaSaveImage",
            filter=[PROMPT_FILTER, 2],
            images=images,
            filename_prefix=prefix,
            file_format=request.output_format,
            disclosure=request.disclosure,
        )
    else:
        add(SAVE, "SaveImage", images=images, filename_prefix=prefix)
    return graph


def _references(request: Request):
    """(node id, pictures, settings) of each style-reference node that the request needs."""
    if request.style_references:
        weights = {f"weight_{number}": weight for number, weight in enumerate(request.weights, 1)}
        yield "style", [each.image for each in request.style_references], weights | {"strength": _strength(request)}
    if request.image_prompt:
        yield "image_prompt", [request.image_prompt], {"use_as": "image prompt", "strength": 1.0}


def _strength(request: Request) -> float:
    """The node's weights are shares of a mix; how hard the mix pulls follows the greatest of them."""
    pull = recipe.STYLE_STRENGTH.default * max(request.weights) / recipe.STYLE_WEIGHT.default
    return round(min(pull, recipe.STYLE_STRENGTH.maximum), 4)
