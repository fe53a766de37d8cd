"""The published files: what FLUX.1 Krea [dev] and its style references need, and what is often mistaken for it.

Sizes in bytes. A SHA-256 that ends in "..." is known by its beginning only.
The hash that Black Forest Labs' docs/text-to-image.md prints for flux1-krea-dev.safetensors (4610115b...) is that of
flux1-dev.safetensors; the true hash of the bf16 Krea file is not published, so that file is recognised by no hash.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class Slot(Enum):
    """What a file is loaded as."""

    DIFFUSION_MODEL = "FLUX.1 Krea [dev] diffusion model"
    CLIP_L = "CLIP-L text encoder"
    T5 = "T5 text encoder"
    VAE = "FLUX.1 VAE"
    VISION = "SigLIP vision encoder"
    REDUX = "FLUX.1 Redux [dev] adapter"


class ModelFile(NamedTuple):
    """A file to download: name, folder below ComfyUI/models, address, size and SHA-256 where they are known."""

    name: str
    folder: str
    url: str
    size: int | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        size = f" ({readable_size(self.size)})" if self.size else ""
        return f"{self.name}{size} in models/{self.folder}, from {self.url}"


class OtherFile(NamedTuple):
    """A published file that is not for FLUX.1 Krea [dev]."""

    title: str
    size: int | None = None
    sha256: str | None = None


def readable_size(size: int) -> str:
    """Bytes as decimal GB, MB or kB, the way download pages state them."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


_HUB = "https://huggingface.co/"
_KREA = _HUB + "Comfy-Org/FLUX.1-Krea-dev_ComfyUI/resolve/main/split_files/diffusion_models/"
_TEXT = _HUB + "comfyanonymous/flux_text_encoders/resolve/main/"

KREA_FP8 = ModelFile(
    "flux1-krea-dev_fp8_scaled.safetensors",
    "diffusion_models",
    _KREA + "flux1-krea-dev_fp8_scaled.safetensors",
    11904639672,
    "b17a8c21703c4d6ffb0e300dd920eff3cfd35c9a72a1abaf107e3788e408b8d8",
)
KREA_BF16 = ModelFile(
    "flux1-krea-dev.safetensors",
    "diffusion_models",
    _HUB + "black-forest-labs/FLUX.1-Krea-dev/resolve/main/flux1-krea-dev.safetensors",
)
CLIP_L = ModelFile(
    "clip_l.safetensors",
    "text_encoders",
    _TEXT + "clip_l.safetensors",
    246144152,
    "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
)
T5_FP8_SCALED = ModelFile(
    "t5xxl_fp8_e4m3fn_scaled.safetensors",
    "text_encoders",
    _TEXT + "t5xxl_fp8_e4m3fn_scaled.safetensors",
    5157348688,
    "a498f0485dc9536735258018417c3fd7758dc3bccc0a645feaa472b34955557a",
)
T5_FP8 = ModelFile(
    "t5xxl_fp8_e4m3fn.safetensors",
    "text_encoders",
    _TEXT + "t5xxl_fp8_e4m3fn.safetensors",
    4893934904,
    "7d330da4816157540d6bb7838bf63a0f02f573fc48ca4d8de34bb0cbfd514f09",
)
T5_FP16 = ModelFile(
    "t5xxl_fp16.safetensors",
    "text_encoders",
    _TEXT + "t5xxl_fp16.safetensors",
    9787841024,
    "6e480b09fae049a72d2a8c5fbccb8d3e92febeb233bbe9dfe7256958a9167635",
)
AE = ModelFile(
    "ae.safetensors",
    "vae",
    _HUB + "Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors",
    335304388,
    "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38",
)

SIGLIP = ModelFile(
    "sigclip_vision_patch14_384.safetensors",
    "clip_vision",
    _HUB + "Comfy-Org/sigclip_vision_384/resolve/main/sigclip_vision_patch14_384.safetensors",
    856505640,
    "1fee501deabac72f0ed17610307d7131e3e9d1e838d0363aa3c2b97a6e03fb33",
)
REDUX = ModelFile(
    "flux1-redux-dev.safetensors",
    "style_models",
    _HUB + "Comfy-Org/Flux1-Redux-Dev/resolve/main/flux1-redux-dev.safetensors",
    None,
    "a1b3bdcb4bdc58ce04874b9ca776d61fc3e914bb6beab41efb63e4e2694dca45",
)

# The first file of a slot is the one that error messages recommend.
FILES: Mapping[Slot, tuple[ModelFile, ...]] = {
    Slot.DIFFUSION_MODEL: (KREA_FP8, KREA_BF16),
    Slot.CLIP_L: (CLIP_L,),
    Slot.T5: (T5_FP8_SCALED, T5_FP16, T5_FP8),
    Slot.VAE: (AE,),
    Slot.VISION: (SIGLIP,),
    Slot.REDUX: (REDUX,),
}

SMALL_MODEL: Mapping[Slot, str] = {
    Slot.DIFFUSION_MODEL: "krea_mini_flux.safetensors",
    Slot.CLIP_L: "krea_mini_clip_l.safetensors",
    Slot.T5: "krea_mini_t5.safetensors",
    Slot.VAE: "krea_mini_vae.safetensors",
    Slot.VISION: "krea_mini_siglip.safetensors",
    Slot.REDUX: "krea_mini_redux.safetensors",
}
"""The names of krea-mini, the model that this repository carries for its demo and tests (models/krea-mini)."""

OTHER_FILES = (
    OtherFile("FLUX.1 [dev]", None, "4610115bb0c89560703c892c59ac2742fa821e60ef5871b33493ba544683abd7"),
    OtherFile("FLUX.1 [schnell]", None, "9403429e0052277a..."),
    OtherFile("FLUX.1 Kontext [dev]", None, "843a26dc765d3105..."),
    OtherFile("FLUX.1 Kontext [dev] (fp8 scaled)", 11904640136, "630ba795ec64283b..."),
    OtherFile("FLUX.1 Fill [dev]", None, "03e289f530df51d0..."),
    OtherFile("FLUX.1 Canny [dev]", None, "996876670169591c..."),
    OtherFile("FLUX.1 Depth [dev]", None, "41360d1662f44ca4..."),
    OtherFile("the full checkpoint flux1-dev-fp8", None, "8e91b68084b53a7f..."),
    OtherFile("the FLUX.2 VAE", 336213556, "d64f3a68e1cc4f9f..."),
    OtherFile("Krea 2 Turbo (fp8)", 13141730784, "eb4dd8c612cfd10f..."),
    OtherFile("Krea 2 (bf16)", 26283332608, "78bbf8f4165eda19..."),
)


def find_by_hash(sha256: str) -> ModelFile | OtherFile | None:
    """The published file with this SHA-256 (64 lower-case hex digits), or None."""
    published = (*(file for files in FILES.values() for file in files), *OTHER_FILES)
    return next((file for file in published if file.sha256 and _same_hash(file.sha256, sha256)), None)


def find_other_by_size(size: int) -> OtherFile | None:
    """The file that is not for Krea and has exactly this many bytes, or None."""
    return next((file for file in OTHER_FILES if file.size == size), None)


def _same_hash(known: str, sha256: str) -> bool:
    return sha256.startswith(known.removesuffix("...")) if known.endswith("...") else sha256 == known
