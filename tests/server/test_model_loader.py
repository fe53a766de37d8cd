"""Krea Model Loader in a real ComfyUI: what it gives is what ComfyUI's own loaders give, and wrong files are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dev import small_model
from dev.client import PromptRejected, RunFailed

SMALL = dict(small_model.INPUTS["FluxKreaModelLoader"])
FLUX, CLIP_L, T5, VAE = (small_model.FOLDER / SMALL[name] for name in SMALL)


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def loader(**inputs):
    return node("FluxKreaModelLoader", **{**SMALL, "weight_dtype": "default", "verify_hash": False, **inputs})


def picture(prefix, model, clip, vae):
    """A graph of ComfyUI's own sampling nodes behind the given loaders; it saves the latent and shows the picture."""
    return {
        "text": node("CLIPTextEncode", clip=clip, text="a red circle on a blue background"),
        "empty": node("EmptySD3LatentImage", width=64, height=96, batch_size=1),
        "sample": node(
            "KSampler",
            **{"model": model, "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0]},
            **{"seed": 7, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
        ),
        "latent": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
        "decode": node("VAEDecode", samples=["sample", 0], vae=vae),
        "image": node("SaveImage", images=["decode", 0], filename_prefix=prefix),
    }


def run(server, prefix, loaders, model=("ours", 0), clip=("ours", 1), vae=("ours", 2)):
    """Latent [1, 16, 12, 8] and PNG bytes of one run."""
    record = server.run({**loaders, **picture(prefix, list(model), list(clip), list(vae))})
    (latent,) = record["outputs"]["latent"]["latents"]
    (image,) = record["outputs"]["image"]["images"]
    path = server.output_dir / latent["subfolder"] / latent["filename"]
    return load_file(path)["latent_tensor"], (server.output_dir / image["subfolder"] / image["filename"]).read_bytes()


def pixels(png):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB").tobytes()


def put(server, folder, name, source):
    target = server.models_dir / folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


@pytest.fixture
def refused(server):
    """Runs the loader with some inputs changed; the message with which the node refused."""

    def run(**inputs):
        graph = {"ours": loader(**inputs), **picture("refused", ["ours", 0], ["ours", 1], ["ours", 2])}
        with pytest.raises((RunFailed, PromptRejected)) as error:
            server.run(graph)
        return str(error.value)

    return run


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn"])
def test_model_and_vae_are_those_of_core(server, weight_dtype):
    ours = run(server, f"ours_{weight_dtype}", {"ours": loader(weight_dtype=weight_dtype)})
    core = {
        "ours": loader(),
        "model": node("UNETLoader", unet_name=SMALL["diffusion_model"], weight_dtype=weight_dtype),
        "vae": node("VAELoader", vae_name=SMALL["vae"]),
    }
    theirs = run(server, f"core_{weight_dtype}", core, model=("model", 0), vae=("vae", 0))
    assert torch.equal(ours[0], theirs[0])
    assert ours[0].isfinite().all() and ours[0].std() > 0.05
    assert pixels(ours[1]) == pixels(theirs[1])


def test_encoders_in_either_order(server):
    ours = run(server, "order_a", {"ours": loader()})
    swapped = loader(text_encoder_1=SMALL["text_encoder_2"], text_encoder_2=SMALL["text_encoder_1"])
    assert torch.equal(ours[0], run(server, "order_b", {"ours": swapped})[0])
