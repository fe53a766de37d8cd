"""Krea Style Model Loader: the vision encoder that looks at a reference picture, and the adapter that makes it text."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections import OrderedDict

import comfy.clip_vision
import comfy.ldm.flux.redux
import comfy.sd
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..krea.model_file.catalogue import Slot
from ..krea.model_file.header import DOWNLOAD_AGAIN, ModelFileError
from ..krea.model_file.identify import expected_files
from ..krea.model_file.style_set import StyleSizes, check_style_set
from ..krea.style import crop_square, pad_square
from . import model_files

KreaStyleModel = io.Custom("KREA_STYLE_MODEL")
_FOLDERS = {"vision_encoder": "clip_vision", "adapter": "style_models"}
_KEPT_PICTURES = 9  # of three nodes


class StyleModel:
    """A SigLIP vision encoder with its Redux adapter; it remembers the last pictures that it has looked at."""

    def __init__(self, vision: comfy.clip_vision.ClipVisionModel, adapter: comfy.sd.StyleModel, sizes: StyleSizes):
        self.vision, self.adapter, self.sizes = vision, adapter, sizes
        self._seen: OrderedDict[str, torch.Tensor] = OrderedDict()

    @property
    def native_tokens(self) -> int:
        """Tokens of a whole picture."""
        return self.sizes.grid**2

    def look(self, picture: torch.Tensor, mask: torch.Tensor | None, fit: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of a picture and how much each counts.

        Args:
            picture: (1, H, W, 3 or 4), 0..1; alpha says how much counts.
            mask: (H', W'), 0..1, how much counts, stretched to the picture; or None.
            fit: "pad", "crop" or "squash".

        Returns:
            (G, G, C) tokens and (G, G) coverage in 0..1.
        """
        colours, counts = picture[..., :3], torch.ones_like(picture[..., :1])
        if picture.shape[-1] == 4:
            counts = picture[..., 3:]
            colours = colours * counts + 0.5 * (1 - counts)  # grey is 0 to the encoder
        if mask is not None:
            counts = counts * F.interpolate(mask[None, None].to(counts), picture.shape[1:3], mode="area").movedim(1, -1)
        if fit == "pad" and picture.shape[1] != picture.shape[2]:
            colours, counts = pad_square(colours, 0.5), pad_square(counts, 0.0)
        if fit == "crop":
            counts = crop_square(counts)
        return self._tokens(colours, fit == "crop"), self._coverage(counts)

    def _tokens(self, picture: torch.Tensor, crop: bool) -> torch.Tensor:
        pixels = picture.contiguous().cpu()
        digest = hashlib.sha256(pixels.numpy()).hexdigest() + f"{tuple(pixels.shape)}{crop}"
        if digest not in self._seen:
            tokens = self.adapter.get_cond(self.vision.encode_image(picture, crop=crop))
            if not torch.isfinite(tokens).all():
                raise ModelFileError(
                    "The style model gives values that are no numbers: its vision encoder or its adapter is damaged. "
                    f"{DOWNLOAD_AGAIN} {expected_files(Slot.VISION)} {expected_files(Slot.REDUX)}"
                )
            self._seen[digest] = tokens.view(self.sizes.grid, self.sizes.grid, -1)
        self._seen.move_to_end(digest)
        while len(self._seen) > _KEPT_PICTURES:
            self._seen.popitem(last=False)
        return self._seen[digest]

    def _coverage(self, counts: torch.Tensor) -> torch.Tensor:
        """(1, H, W, 1) -> (G, G): the mean over the patch of each token."""
        side, patch, grid = self.sizes.image_size, self.sizes.patch_size, self.sizes.grid
        seen = F.interpolate(counts.movedim(-1, 1), (side, side), mode="area")[..., : grid * patch, : grid * patch]
        return F.avg_pool2d(seen, patch)[0, 0]


class FluxKreaStyleModelLoader(io.ComfyNode):
    """Load SigLIP and the Redux adapter; refuse wrong files by name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FluxKreaStyleModelLoader",
            display_name="Krea Style Model Loader",
            category="Krea",
            description=(
                "Loads what Krea Style Reference looks at pictures with: the SigLIP vision encoder and the FLUX.1 "
                "Redux [dev] adapter, both identified by their headers first. For FLUX.1 Krea [dev], not Krea 2."
            ),
            search_aliases=["redux", "style model", "clip vision", "siglip", "krea dev"],
            inputs=[
                io.Combo.Input(
                    "vision_encoder",
                    options=folder_paths.get_filename_list("clip_vision"),
                    tooltip="Looks at the reference pictures: sigclip_vision_patch14_384.safetensors (857 MB). From "
                    "models/clip_vision.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=folder_paths.get_filename_list("style_models"),
                    tooltip="Turns what was seen into words for FLUX.1: flux1-redux-dev.safetensors (129 MB). From "
                    "models/style_models.",
                ),
            ],
            outputs=[KreaStyleModel.Output("style_model", tooltip="For Krea Style Reference.")],
        )

    @classmethod
    def validate_inputs(cls, vision_encoder=None, adapter=None):
        # Naming an input here replaces ComfyUI's own list check, so that a bare name may lie in a subfolder.
        errors = []
        for input_id, name in (("vision_encoder", vision_encoder), ("adapter", adapter)):
            try:
                if name is not None:  # over a link, not known yet
                    model_files.path_of(_FOLDERS[input_id], name)
            except ModelFileError as error:
                errors.append(f"{input_id}: {error}")
        return "\n".join(errors) or True

    @classmethod
    def fingerprint_inputs(cls, vision_encoder, adapter):
        return model_files.fingerprints(_paths(vision_encoder, adapter))

    @classmethod
    def execute(cls, vision_encoder: str, adapter: str) -> io.NodeOutput:
        """The style model.

        Raises:
            ModelFileError: a file is missing, damaged, or not the one that its input needs.
        """
        paths = _paths(vision_encoder, adapter)
        sizes = check_style_set(*paths)
        return io.NodeOutput(StyleModel(_load_vision(paths[0], sizes), _load_adapter(paths[1], sizes), sizes))


def _paths(*names: str) -> list[str]:
    return [model_files.path_of(folder, name) for folder, name in zip(_FOLDERS.values(), names, strict=True)]


def _load_vision(path: str, sizes: StyleSizes) -> comfy.clip_vision.ClipVisionModel:
    # What comfy.clip_vision.load does, which knows two sizes only.
    config = {
        **sizes._asdict(),
        "model_type": "siglip_vision_model",
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    with tempfile.TemporaryDirectory() as folder:  # older ComfyUIs read the sizes from a file only
        file = os.path.join(folder, "config.json")
        with open(file, "w", encoding="utf-8") as opened:
            json.dump(config, opened)
        vision = comfy.clip_vision.ClipVisionModel(file)
    with _damage_named(path):
        missing, _ = vision.load_sd(comfy.utils.load_torch_file(path))
        if missing:
            raise RuntimeError(f"{missing[0]} is missing")
    return vision


def _load_adapter(path: str, sizes: StyleSizes) -> comfy.sd.StyleModel:
    # What comfy.sd.load_style_model does, which knows one size only.
    adapter = comfy.ldm.flux.redux.ReduxImageEncoder(sizes.hidden_size, sizes.text_width)
    with _damage_named(path):
        adapter.load_state_dict(comfy.utils.load_torch_file(path, safe_load=True))
    return comfy.sd.StyleModel(adapter)


@contextlib.contextmanager
def _damage_named(path: str):
    """Turns torch's complaint that tensors do not fit the model into one that names the file."""
    try:
        yield
    except RuntimeError as error:
        raise ModelFileError(f"{os.path.basename(path)} is damaged. {DOWNLOAD_AGAIN} ({error})") from error
