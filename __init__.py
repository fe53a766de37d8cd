"""Flux Krea: ComfyUI nodes for FLUX.1 Krea [dev] (not Krea 2)."""

from comfy_api.latest import ComfyExtension, io

from .nodes import about, review
from .nodes.aspect_ratio_latent import FluxKreaAspectRatioLatent
from .nodes.content_filter import FluxKreaContentFilter, FluxKreaPromptFilter
from .nodes.content_filter_loader import FluxKreaContentFilterLoader
from .nodes.model_loader import FluxKreaModelLoader
from .nodes.prompt import FluxKreaPrompt
from .nodes.sampler import FluxKreaSampler
from .nodes.save_image import FluxKreaSaveImage
from .nodes.style_model import FluxKreaStyleModelLoader
from .nodes.style_reference import FluxKreaStyleReference

WEB_DIRECTORY = "./web"


class FluxKreaExtension(ComfyExtension):
    async def on_load(self) -> None:
        about.add_routes()
        review.add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            FluxKreaModelLoader,
            FluxKreaPrompt,
            FluxKreaAspectRatioLatent,
            FluxKreaSampler,
            FluxKreaStyleModelLoader,
            FluxKreaStyleReference,
            FluxKreaContentFilterLoader,
            FluxKreaPromptFilter,
            FluxKreaContentFilter,
            FluxKreaSaveImage,
        ]


async def comfy_entrypoint() -> FluxKreaExtension:
    return FluxKreaExtension()
