"""Krea Aspect-Ratio Latent: the empty latent of a picture size that FLUX.1 Krea [dev] was made for."""

from typing import Any

from aiohttp import web
from comfy_api.latest import io
from comfy_extras.nodes_sd3 import EmptySD3LatentImage
from server import PromptServer

from ..krea import aspect_ratio as sizes
from ..krea.recipe import BATCH_SIZE


class FluxKreaAspectRatioLatent(io.ComfyNode):
    """Chooses the picture's size and makes the empty latent for it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        meanings = "; ".join(f"{ratio} {preset.meant_for}" for ratio, preset in sizes.PRESETS.items())
        return io.Schema(
            node_id="FluxKreaAspectRatioLatent",
            display_name="Krea Aspect-Ratio Latent",
            category="Krea",
            description=(
                "Sets the size and the number of pictures that FLUX.1 Krea [dev] makes. The node shows the "
                "resulting frame before anything runs."
            ),
            search_aliases=["empty latent", "resolution", "size", "width height", "aspect ratio", "flux latent"],
            inputs=[
                io.Combo.Input(
                    "aspect_ratio",
                    options=[*sizes.PRESETS, sizes.CUSTOM],
                    default=sizes.DEFAULT_RATIO,
                    tooltip=f"The shape of the picture, width:height. {meanings}. 'custom' takes custom_ratio.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=[*sizes.RESOLUTIONS, sizes.CUSTOM],
                    default=sizes.DEFAULT_RESOLUTION,
                    tooltip="How large the picture is: 1K has the area of a 1024 px square, 1.5K of a 1536 px "
                    "square (more detail, about 2.5 times slower). 4K makes the 1K picture and tells the upscale "
                    "stage to enlarge it four times per side. 'custom' takes custom_megapixels.",
                ),
                io.Boolean.Input(
                    "swap_sides",
                    optional=True,
                    default=False,
                    tooltip="Turns the frame on its side: landscape becomes portrait and the other way round.",
                ),
                io.String.Input(
                    "custom_ratio",
                    optional=True,
                    default="21:9",
                    tooltip="Width:height such as 21:9, 2.39:1 or 1.85. Shapes the picture only when aspect_ratio "
                    "is 'custom'.",
                ),
                io.Float.Input(
                    "custom_megapixels",
                    optional=True,
                    default=1.0,
                    min=0.01,
                    max=16.0,
                    step=0.05,
                    tooltip="The picture's area; 1 is that of a 1024 px square. Counts only when resolution is "
                    "'custom'. The model draws best from 0.1 to 2.4; above, patterns and stripes repeat.",
                ),
                io.Image.Input(
                    "picture",
                    optional=True,
                    tooltip="Gives the new picture this picture's shape, at the resolution chosen above; "
                    "aspect_ratio is then not used.",
                ),
                io.Int.Input(
                    "batch_size",
                    optional=True,
                    default=BATCH_SIZE.default,
                    min=BATCH_SIZE.minimum,
                    max=BATCH_SIZE.maximum,
                    tooltip="How many pictures are made at once, each with its own seed.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The empty picture, for Krea Sampler."),
                io.Int.Output("width", tooltip="Width in px of the picture that the latent becomes."),
                io.Int.Output("height", tooltip="Height in px of the picture that the latent becomes."),
                io.Int.Output("upscale_factor", tooltip="How much to enlarge each side afterwards: 4 for 4K, else 1."),
            ],
        )

    @classmethod
    def execute(
        cls,
        aspect_ratio: str,
        resolution: str,
        swap_sides: bool = False,
        custom_ratio: str = "21:9",
        custom_megapixels: float = 1.0,
        picture: Any = None,
        batch_size: int = BATCH_SIZE.default,
    ) -> io.NodeOutput:
        """picture: [B, H, W, C]; the latent is [batch_size, 16, height / 8, width / 8], zeros."""
        frame = sizes.frame(
            aspect_ratio,
            resolution,
            swap_sides=swap_sides,
            custom_ratio=custom_ratio,
            custom_megapixels=custom_megapixels,
            picture=None if picture is None else (picture.shape[2], picture.shape[1]),
        )
        width, height = frame.size
        [latent] = EmptySD3LatentImage.execute(width, height, batch_size).args
        return io.NodeOutput(latent, width, height, frame.upscale_factor, ui={"frame": [describe(frame)]})


def describe(frame: sizes.Frame) -> dict[str, Any]:
    """What the drawing of the frame on the node needs."""
    width, height = frame.size
    caption = f"{width} × {height} px · {_ratio_name(frame.size)} · {frame.size.megapixels:.2f} MP"
    if frame.upscale_factor > 1:
        final = frame.final_size
        caption += f"\n\u2192 {final.width} × {final.height} px · {frame.upscale_factor}× upscale"
    return {"width": width, "height": height, "caption": caption}


def _ratio_name(size: sizes.Size) -> str:
    for ratio, preset in sizes.PRESETS.items():
        if size in preset.sizes.values():
            return ratio
    return f"{size.width / size.height:.2f}:1"


async def describe_settings(request: web.Request) -> web.Response:
    """GET: the frame for widget values that have not run yet, so that the page holds no sizes of its own.

    Values that make no frame, such as a ratio that is half typed, get the reason instead: {"error": ...}.
    """
    settings = request.query
    try:
        frame = sizes.frame(
            settings.get("aspect_ratio", sizes.DEFAULT_RATIO),
            settings.get("resolution", sizes.DEFAULT_RESOLUTION),
            swap_sides=settings.get("swap_sides") == "true",
            custom_ratio=settings.get("custom_ratio", ""),
            custom_megapixels=float(settings.get("custom_megapixels", 1)),
        )
    except ValueError as error:
        return web.json_response({"error": str(error)})
    return web.json_response(describe(frame))


if hasattr(PromptServer, "instance"):  # absent where nodes are loaded without a server
    PromptServer.instance.routes.get("/flux_krea/frame")(describe_settings)
