"""Krea Model Loader: four checked files in one node."""

import logging
import os

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io

import nodes

from ..krea.model_file.catalogue import ModelFile, OtherFile, Slot, find_by_hash
from ..krea.model_file.header import ModelFileError
from ..krea.model_file.identify import expected_files
from ..krea.model_file.model_set import ModelSet, check_model_set
from ..krea.model_file.text_encoder import CLIP_L_CONFIG, T5_XXL_CONFIG, clip_config, is_quantized, t5_config
from . import model_files, node_text

_TAEF1 = "taef1"
_TAEF1_HALVES = ("taef1_encoder.", "taef1_decoder.")
_WEIGHT_DTYPES = ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]
_FOLDERS = {
    "diffusion_model": "diffusion_models",
    "text_encoder_1": "text_encoders",
    "text_encoder_2": "text_encoders",
    "vae": "vae",
}


class FluxKreaModelLoader(io.ComfyNode):
    """Load the diffusion model, both text encoders and the VAE of FLUX.1 Krea [dev]; refuse wrong files by name."""

    @classmethod
    def define_schema(cls):
        text_encoders = folder_paths.get_filename_list("text_encoders")
        return io.Schema(
            node_id="FluxKreaModelLoader",
            display_name="Krea Model Loader",
            category="Krea",
            description=(
                "Loads FLUX.1 Krea [dev] (not Krea 2): diffusion model, two text encoders and VAE. Each file is"
                " identified by its header first, so a wrong, damaged or half-downloaded file is named at once."
            ),
            search_aliases=["krea dev", "flux krea", "load flux", "unet loader", "dual clip loader", "load vae"],
            inputs=[
                io.Combo.Input(
                    "diffusion_model",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="The model that paints: flux1-krea-dev_fp8_scaled.safetensors (12 GB)"
                    " or flux1-krea-dev.safetensors (24 GB, the finest detail). From models/diffusion_models.",
                ),
                io.Combo.Input(
                    "text_encoder_1",
                    options=text_encoders,
                    tooltip="CLIP-L or T5, in either order. clip_l.safetensors gives the overall impression"
                    " of the prompt. From models/text_encoders.",
                ),
                io.Combo.Input(
                    "text_encoder_2",
                    options=text_encoders,
                    tooltip="The other of CLIP-L and T5. T5 reads the whole prompt and decides how closely the picture"
                    " follows it: t5xxl_fp8_e4m3fn_scaled.safetensors, or t5xxl_fp16.safetensors with much memory.",
                ),
                io.Combo.Input(
                    "vae",
                    options=_vae_names(),
                    tooltip="Turns the latent into pixels: ae.safetensors for full quality, taef1 for fast,"
                    " slightly softer pictures. From models/vae.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    optional=True,
                    options=_WEIGHT_DTYPES,
                    default="default",
                    tooltip="default keeps the precision of the file. fp8 halves the memory of a 16-bit file and"
                    " changes fine detail a little; _fast also computes in fp8 on recent GPUs.",
                ),
                io.Boolean.Input(
                    "verify_hash",
                    optional=True,
                    default=False,
                    advanced=True,
                    tooltip="Does not change the picture. Computes each file's SHA-256 once (about a minute for 12 GB)"
                    " and says which published file it is: Krea and FLUX.1 [dev] can be told apart in no other way.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model"),
                io.Clip.Output("clip", display_name="clip"),
                io.Vae.Output("vae", display_name="vae"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, diffusion_model=None, text_encoder_1=None, text_encoder_2=None, vae=None):
        # Naming an input here replaces ComfyUI's own list check, so that a bare name may lie in a subfolder.
        errors = []
        for input_id, name in _files(diffusion_model, text_encoder_1, text_encoder_2, vae).items():
            try:
                _paths({input_id: name})
            except ModelFileError as error:
                errors.append(f"{input_id}: {error}")  # ComfyUI marks all four inputs, whichever is wrong
        return "\n".join(errors) or True

    @classmethod
    def fingerprint_inputs(cls, diffusion_model, text_encoder_1, text_encoder_2, vae, **_):
        paths = _paths(_files(diffusion_model, text_encoder_1, text_encoder_2, vae))
        return model_files.fingerprints(paths.values())

    @classmethod
    def execute(
        cls, diffusion_model, text_encoder_1, text_encoder_2, vae, weight_dtype="default", verify_hash=False
    ) -> io.NodeOutput:
        """MODEL, CLIP and VAE, as ComfyUI's own loaders give them.

        Raises:
            ModelFileError: a file is missing, damaged, or not the one that its input needs.
        """
        files = _files(diffusion_model, text_encoder_1, text_encoder_2, vae)
        for input_id, folder in _FOLDERS.items():
            if not isinstance(files.get(input_id), str):
                raise ModelFileError(
                    f"{input_id} is {files.get(input_id)!r}: give the name of a file in models/{folder}."
                )
        paths = _paths(files)
        encoders = paths["text_encoder_1"], paths["text_encoder_2"]
        models = check_model_set(paths["diffusion_model"], encoders, paths.get("vae"))
        report = _verify(list(paths.values())) if verify_hash else None
        if report:
            node_text.show(report, cls.hidden.unique_id)

        model_name = model_files.find("diffusion_models", diffusion_model)
        vae_name = model_files.find("vae", vae) if "vae" in paths else vae
        (model,) = nodes.UNETLoader().load_unet(model_name, weight_dtype)
        (autoencoder,) = nodes.VAELoader().load_vae(vae_name)
        clip = _load_text_encoders(encoders, models)
        return io.NodeOutput(model, clip, autoencoder, ui={"text": [report]} if report else None)


def _vae_names() -> list[str]:
    return folder_paths.get_filename_list("vae") + ([_TAEF1] if len(_taef1_files()) == 2 else [])


def _taef1_files() -> list[str]:
    """The halves of taef1 that are there, as ComfyUI's VAELoader finds them."""
    names = folder_paths.get_filename_list("vae_approx")
    halves = (next((name for name in names if name.startswith(half)), None) for half in _TAEF1_HALVES)
    return [name for name in halves if name is not None]


def _files(*names: str | None) -> dict[str, str]:
    """The chosen names by input, without those that come over a link and are not known yet."""
    return {input_id: name for input_id, name in zip(_FOLDERS, names, strict=True) if name is not None}


def _paths(files: dict[str, str]) -> dict[str, str]:
    """Full paths by input; taef1 stands for two files, neither of which is called vae."""
    paths = {}
    for input_id, name in files.items():
        if (input_id, name) != ("vae", _TAEF1):
            paths[input_id] = model_files.path_of(_FOLDERS[input_id], name)
        elif len(_taef1_files()) == 2:
            paths |= {half: model_files.path_of("vae_approx", half) for half in _taef1_files()}
        else:
            raise ModelFileError(
                "taef1 needs taef1_encoder.pth and taef1_decoder.pth (4.7 MB each) in models/vae_approx, from"
                " https://github.com/madebyollin/taesd; put both there, then press R."
            )
    return paths


def _load_text_encoders(paths: tuple[str, str], models: ModelSet) -> comfy.sd.CLIP:
    # Without options this is DualCLIPLoader's own call. ComfyUI takes CLIP's sizes under the plain name
    # "model_config": it overwrites "clip_l_model_config" with it.
    options = {}
    clip_sizes, t5_sizes = clip_config(models.clip_l), t5_config(models.t5)
    if clip_sizes != CLIP_L_CONFIG:
        options["model_config"] = clip_sizes
    if t5_sizes != T5_XXL_CONFIG:
        options["t5xxl_model_config"] = t5_sizes
        if is_quantized(models.t5):
            options["t5xxl_quantization_metadata"] = {"mixed_ops": True}
    return comfy.sd.load_clip(
        ckpt_paths=list(paths),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.FLUX,
        model_options=options,
    )


def _verify(paths: list[str]) -> str:
    """Say which published file each one is, one per line; refuse those that are known to be something else."""
    progress = comfy.utils.ProgressBar(sum(map(os.path.getsize, paths)))

    def on_chunk(size: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(size)

    verdicts, errors = [], []
    for path in paths:
        name, digest = os.path.basename(path), model_files.sha256(path, on_chunk)
        match find_by_hash(digest):
            case ModelFile() as file:
                verdicts.append(f"{name} is the published {file.name}.")
            case OtherFile() as file:
                verdicts.append(f"{name} is {file.title}, told by its SHA-256.")
                errors.append(verdicts[-1])
            case None:
                verdicts.append(f"{name} is no published file that is known here.")
        logging.info("Krea Model Loader: %s SHA-256 %s", verdicts[-1], digest)
    if errors:
        raise ModelFileError("\n".join([*errors, expected_files(Slot.DIFFUSION_MODEL)]))
    return "\n".join(verdicts)
