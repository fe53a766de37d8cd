"""Krea Model Loader in a real ComfyUI: it gives what ComfyUI's own loaders give, and refuses wrong files."""

import asyncio
import hashlib
import io
import json
import os
import shutil
import threading
import time

import aiohttp
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dev import small_model
from dev.client import PromptRejected, RunFailed, images_of

SMALL = small_model.INPUTS["FluxKreaModelLoader"]
FLUX, CLIP_L, T5, VAE = (small_model.FOLDER / SMALL[name] for name in list(SMALL)[:4])
FP8 = torch.float8_e4m3fn


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def loader(**inputs):
    return node("FluxKreaModelLoader", **{**SMALL, "weight_dtype": "default", "verify_hash": False, **inputs})


def picture(model=("ours", 0), clip=("ours", 1), vae=("ours", 2), prefix="loader"):
    """ComfyUI's own sampling nodes behind the given loaders: they save the latent and the picture."""
    return {
        "text": node("CLIPTextEncode", clip=list(clip), text="a red circle on a blue background"),
        "empty": node("EmptySD3LatentImage", width=64, height=96, batch_size=1),
        "sample": node(
            "KSampler",
            **{"model": list(model), "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0]},
            **{"seed": 7, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
        ),
        "latent": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
        "decode": node("VAEDecode", samples=["sample", 0], vae=list(vae)),
        "image": node("SaveImage", images=["decode", 0], filename_prefix=prefix),
    }


def run(server, loaders, **links):
    """Latent [1, 16, 12, 8] and picture (RGB bytes) of one run."""
    # A prefix of its own: ComfyUI would not save again what it has saved, nor say where.
    record = server.run({**loaders, **picture(**links, prefix=f"loader_{time.monotonic_ns()}")})
    (latent,) = record["outputs"]["latent"]["latents"]
    (image,) = record["outputs"]["image"]["images"]
    pixels = Image.open(io.BytesIO(server.view(image))).convert("RGB").tobytes()
    return load_file(server.output_dir / latent["subfolder"] / latent["filename"])["latent_tensor"], pixels


def refusal(server, **inputs) -> str:
    """The message with which the loader refuses these inputs."""
    with pytest.raises((RunFailed, PromptRejected)) as error:
        server.run({"ours": loader(**inputs), **picture()})
    return str(error.value)


@pytest.fixture
def put(server):
    """Puts a file below ComfyUI's models folder for the length of a test: from a path, or from tensors."""
    paths = []

    def write(name, content):
        path = server.models_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            save_file(content, path)
        else:
            shutil.copyfile(content, path)
        paths.append(path)
        return path

    yield write
    for path in paths:
        path.unlink(missing_ok=True)


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def scaled_fp8(tensors, is_scaled):
    """The same weights in scaled fp8 under the names of Comfy-Org's files."""
    result = {"scaled_fp8": torch.zeros(2, dtype=FP8)}
    for name, weight in tensors.items():
        if is_scaled(name):
            scale = weight.abs().max().float().clamp(min=1e-6) / 448
            result[name] = (weight.float() / scale).to(FP8)
            result[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            result[name] = weight
    return result


def is_flux_matrix(name):
    return "_blocks." in name and name.endswith(".weight")


def is_t5_matrix(name):
    return ".layer." in name and name.endswith(".weight") and "norm" not in name and "bias" not in name


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn"])
def test_model_and_vae_are_those_of_core(server, weight_dtype):
    ours = run(server, {"ours": loader(weight_dtype=weight_dtype)})
    core = {
        "ours": loader(),
        "model": node("UNETLoader", unet_name=SMALL["diffusion_model"], weight_dtype=weight_dtype),
        "vae": node("VAELoader", vae_name=SMALL["vae"]),
    }
    theirs = run(server, core, model=("model", 0), vae=("vae", 0))
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert ours[0].isfinite().all() and ours[0].std() > 0.05


def test_encoders_in_either_order(server):
    swapped = loader(text_encoder_1=SMALL["text_encoder_2"], text_encoder_2=SMALL["text_encoder_1"])
    assert torch.equal(run(server, {"ours": swapped})[0], run(server, {"ours": loader()})[0])


def test_scaled_fp8_model_is_that_of_core(server, put):
    put("diffusion_models/scaled.safetensors", scaled_fp8(load_file(FLUX), is_flux_matrix))
    ours = run(server, {"ours": loader(diffusion_model="scaled.safetensors")})[0]
    core = {"ours": loader(), "model": node("UNETLoader", unet_name="scaled.safetensors", weight_dtype="default")}
    assert torch.equal(ours, run(server, core, model=("model", 0))[0])
    assert 0 < distance(ours, run(server, {"ours": loader()})[0]) < 0.1


@pytest.mark.parametrize("scaled", [False, True])
def test_fp8_t5(server, put, scaled):
    tensors = load_file(T5)
    if scaled:
        tensors = scaled_fp8(tensors, is_t5_matrix)
    else:
        tensors = {name: weight.to(FP8) if is_t5_matrix(name) else weight for name, weight in tensors.items()}
    put("text_encoders/t5_fp8.safetensors", tensors)
    found = run(server, {"ours": loader(text_encoder_2="t5_fp8.safetensors")})[0]
    assert 0 < distance(found, run(server, {"ours": loader()})[0]) < 0.2


def test_taef1_is_taken_from_its_two_files(server, put):
    assert "taef1" not in vae_options(server)
    assert "taef1 needs taef1_encoder.pth and taef1_decoder.pth" in refusal(server, vae="taef1")
    weights = load_file(VAE)
    for half in ("encoder", "decoder"):
        prefix = f"taesd_{half}."
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        put(f"vae_approx/taef1_{half}.safetensors", part)
    assert "taef1" in vae_options(server)
    core = {"ours": loader(), "vae": node("VAELoader", vae_name="taef1")}
    assert run(server, {"ours": loader(vae="taef1")})[1] == run(server, core, vae=("vae", 0))[1]


def vae_options(server):
    options = server.object_info()["FluxKreaModelLoader"]["input"]["required"]["vae"]
    return options[1]["options"]


def test_bare_name_is_found_in_a_subfolder(server, put):
    put("diffusion_models/flux/krea/found.safetensors", FLUX)
    expected = run(server, {"ours": loader()})[0]
    for name in ("found.safetensors", "krea/found.safetensors", "flux/krea/found.safetensors"):
        assert torch.equal(run(server, {"ours": loader(diffusion_model=name)})[0], expected)


def test_ambiguous_name_is_refused_with_the_candidates(server, put):
    put("vae/a/twice.safetensors", VAE)
    put("vae/b/twice.safetensors", VAE)
    message = refusal(server, vae="twice.safetensors")
    assert "twice.safetensors is in several subfolders of models/vae" in message
    assert os.path.join("a", "twice.safetensors") in message and os.path.join("b", "twice.safetensors") in message


def test_missing_files_are_all_named_with_their_source(server):
    message = refusal(server, diffusion_model="flux1-krea-dev_fp8_scaled.safetensors", vae="nothing.safetensors")
    assert "flux1-krea-dev_fp8_scaled.safetensors is not in models/diffusion_models. Get flux1-krea-dev_fp8" in message
    assert "(11.9 GB) in models/diffusion_models, from https://huggingface.co/Comfy-Org/FLUX.1-Krea-dev" in message
    assert "vae: nothing.safetensors is not in models/vae. Get ae.safetensors (335 MB)" in message


def test_file_in_another_folder_is_told(server, put):
    put("checkpoints/misplaced.safetensors", FLUX)
    message = refusal(server, diffusion_model="misplaced.safetensors")
    assert "It is in models/checkpoints: move it to models/diffusion_models" in message


def test_other_combos_are_still_checked(server):
    assert "Value not in list" in refusal(server, weight_dtype="fp4")


def test_wrong_files_are_all_refused_before_anything_is_loaded(server, put):
    schnell = {name: value for name, value in load_file(FLUX).items() if not name.startswith("guidance_in")}
    put("diffusion_models/schnell.safetensors", schnell)
    put("vae/t5.safetensors", T5)
    before = server.log_text().count("Requested to load")
    message = refusal(server, diffusion_model="schnell.safetensors", text_encoder_2=CLIP_L.name, vae="t5.safetensors")
    assert "schnell.safetensors is FLUX.1 [schnell]" in message
    assert f"Both text encoders are a CLIP-L text encoder ({CLIP_L.name})" in message
    assert "t5.safetensors is a T5 text encoder, not the FLUX.1 VAE. Expected: ae.safetensors" in message
    assert server.log_text().count("Requested to load") == before


def test_truncated_file_is_refused(server, put):
    path = put("vae/half.safetensors", VAE)
    os.truncate(path, path.stat().st_size // 2)
    message = refusal(server, vae="half.safetensors")
    assert f"half.safetensors is truncated: its header describes {VAE.stat().st_size:,} bytes" in message


def test_replaced_file_is_loaded_again(server, put):
    def cached(record):
        return next(data["nodes"] for kind, data in record["status"]["messages"] if kind == "execution_cached")

    path = put("diffusion_models/changing.safetensors", FLUX)
    graph = {"ours": loader(diffusion_model="changing.safetensors"), **picture()}
    server.run(graph)
    assert "ours" in cached(server.run(graph))
    os.utime(path, (1, 1))
    assert "ours" not in cached(server.run(graph))


# The SHA-256 check.


def hash_cache(server):
    return server.base / "user" / "flux_krea_hashes.json"


def progress_text(server, graph):
    """What the nodes of a graph write on themselves: (node id, text)."""

    async def listen():
        texts = []
        address = f"{server.url}/ws?clientId={server.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            server.submit(graph)
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY and int.from_bytes(message.data[:4], "big") == 3:
                    end = 8 + int.from_bytes(message.data[4:8], "big")
                    texts.append((message.data[8:end].decode(), message.data[end:].decode()))
                elif message.type is aiohttp.WSMsgType.TEXT:
                    kind = json.loads(message.data)["type"]
                    assert kind != "execution_error"
                    if kind == "execution_success":
                        return texts

    return asyncio.run(asyncio.wait_for(listen(), 120))


def test_unknown_hash_is_said_on_the_node_and_remembered(server):
    ((node_id, text),) = progress_text(server, {"ours": loader(verify_hash=True), **picture(prefix="hash")})
    digest = hashlib.sha256(FLUX.read_bytes()).hexdigest()
    assert node_id == "ours"
    assert f"{FLUX.name} is no published file that is known here." in text
    assert len(text.splitlines()) == 4
    assert f"{FLUX.name} is no published file that is known here. SHA-256 {digest}" in server.log_text()
    known = {entry["sha256"] for entry in json.loads(hash_cache(server).read_text()).values()}
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in (FLUX, CLIP_L, T5, VAE)} <= known


@pytest.mark.parametrize(
    ("sha256", "title"),
    [
        ("b17a8c21703c4d6ffb0e300dd920eff3cfd35c9a72a1abaf107e3788e408b8d8", None),
        ("4610115bb0c89560703c892c59ac2742fa821e60ef5871b33493ba544683abd7", "FLUX.1 [dev]"),
        ("630ba795ec64283b" + "0" * 48, "FLUX.1 Kontext [dev] (fp8 scaled)"),
    ],
)
def test_known_hash_is_named(server, put, sha256, title):
    # A file with a published hash is too large for a test: the remembered hash of a small one is edited instead.
    path = put(f"diffusion_models/{sha256[:4]}.safetensors", FLUX)
    inputs = {"diffusion_model": path.name, "verify_hash": True}
    server.run({"ours": loader(**inputs), **picture(prefix="first")})
    cache = json.loads(hash_cache(server).read_text())
    cache[str(path)]["sha256"] = sha256
    hash_cache(server).write_text(json.dumps(cache))
    other_inputs = {**inputs, "weight_dtype": "fp8_e5m2"}  # else ComfyUI would not run the node again
    if title is None:
        ((_, text),) = progress_text(server, {"ours": loader(**other_inputs), **picture(prefix="second")})
        assert f"{path.name} is the published flux1-krea-dev_fp8_scaled.safetensors." in text
    else:
        message = refusal(server, **other_inputs)
        assert f"{path.name} is {title}, told by its SHA-256." in message
        assert "Expected: flux1-krea-dev_fp8_scaled.safetensors" in message
    os.utime(path, (1, 1))  # a changed file is hashed again
    server.run({"ours": loader(**inputs), **picture(prefix="third")})
    assert json.loads(hash_cache(server).read_text())[str(path)]["sha256"] != sha256


def test_damaged_hash_cache_is_no_obstacle(server):
    hash_cache(server).write_text('{"half": ')
    server.run({"ours": loader(verify_hash=True, weight_dtype="fp8_e5m2"), **picture(prefix="damaged")})
    assert len(json.loads(hash_cache(server).read_text())) == 4


def test_hashing_can_be_interrupted(server, put):
    path = put("diffusion_models/large.safetensors", FLUX)
    size = 40 * 10**9  # minutes of hashing; a hole in the file, so it takes no disk
    with open(path, "r+b") as file:
        text = file.read(8 + int.from_bytes(file.read(8), "little"))[:-8]
        fields = json.loads(text)
        end = max(entry["data_offsets"][1] for name, entry in fields.items() if name != "__metadata__")
        fields["padding"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        text = json.dumps(fields).encode()
        file.seek(0)
        file.write(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end + size)
    threading.Timer(3, server.interrupt).start()
    start = time.monotonic()
    assert "interrupted" in refusal(server, diffusion_model="large.safetensors", verify_hash=True)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("saver", ["SaveImage", "FluxKreaSaveImage"])
def test_a_saved_picture_tells_no_folder_of_the_server(server, small_graph, saver):
    """ComfyUI writes what a loader says of its files into the picture."""
    graph = small_graph("text_to_image")
    graph["4"]["inputs"]["steps"] = 15
    if saver == "SaveImage":
        graph["6"] = {"class_type": saver, "inputs": {"images": ["5", 0], "filename_prefix": "plain"}}
    [image] = images_of(server.run(graph))
    assert str(server.base).encode() not in server.view(image)
