"""A file is named by its tensors: the right ones are accepted, every other is refused by its name."""

import os
import re

import pytest

from krea.model_file.catalogue import AE, CLIP_L, FILES, KREA_FP8, T5_FP8_SCALED, Slot, find_by_hash
from krea.model_file.header import ModelFileError, read_header
from krea.model_file.identify import expect, identify
from tests.unit.safetensors_files import clip, flux, t5, vae, write_header, write_sparse

MODEL, CLIP, T5, VAE = Slot.DIFFUSION_MODEL, Slot.CLIP_L, Slot.T5, Slot.VAE
ENCODERS = (CLIP, T5)


def small_flux(**sizes):
    return flux(**{"hidden": 128, "double": 1, "single": 1, "text": 64, "pooled": 32, **sizes})


def prefixed(shapes, prefix="model.diffusion_model."):
    return {prefix + name: shape for name, shape in shapes.items()}


def of(*names):
    return {name: (8, 8) for name in names}


def taesd(channels):
    names = {"taesd_encoder.0.weight": (64, 3, 3, 3), "taesd_decoder.19.weight": (3, 64, 3, 3)}
    return names | {"taesd_decoder.1.weight": (64, channels, 3, 3)}


def scaled(shapes, suffix):
    scales = {name.removesuffix(".weight") + suffix: () for name in shapes if name.endswith(".weight")}
    return shapes | scales | {"scaled_fp8": (2,)}


ACCEPTED = {
    "FLUX.1 in full size": (flux(), MODEL),
    "a small FLUX.1": (small_flux(), MODEL),
    "a FLUX.1 under the prefix of checkpoints, alone": (prefixed(small_flux()), MODEL),
    "scaled fp8, old names": (scaled(small_flux(), ".scale_weight"), MODEL),
    "scaled fp8, new names": (scaled(small_flux(), ".weight_scale"), MODEL),
    "per-layer quantization": (small_flux() | {"single_blocks.0.linear1.comfy_quant": (30,)}, MODEL),
    "CLIP-L": (clip(), CLIP),
    "CLIP-L with its vision half": (clip() | of("vision_model.encoder.layers.0.mlp.fc1.weight"), CLIP),
    "a small CLIP": (clip(32, 2, 64), CLIP),
    "T5-XXL": (t5(), T5),
    "scaled T5-XXL": (scaled(t5(), ".scale_weight"), T5),
    "a small T5": (t5(64, 1, 12, 32, 128), T5),
    "ae": (vae(), VAE),
    "a 16-channel TAESD": (taesd(16) | {"vae_scale": (), "vae_shift": ()}, VAE),
}


@pytest.mark.parametrize(("shapes", "slot"), ACCEPTED.values(), ids=ACCEPTED)
def test_right_files_are_accepted(tmp_path, shapes, slot):
    path = write_sparse(tmp_path / "model.safetensors", shapes)
    header, found = expect(path, *Slot)
    assert found is slot
    assert len(header.tensors) == len(shapes)


llm = "model.layers.0."
REFUSED = {
    "schnell": (small_flux(guidance=False), r"FLUX.1 \[schnell\].*no guidance embedding"),
    "Fill": (small_flux(channels=384), r"FLUX.1 Fill \[dev\]"),
    "Canny or Depth": (small_flux(channels=128), r"FLUX.1 Canny \[dev\] or Depth \[dev\]"),
    "another latent": (small_flux(channels=48), "latent has not 16 channels"),
    "FLUX.2": (small_flux() | of("double_stream_modulation_img.lin.weight"), r"FLUX\.2"),
    "Krea 2": (of("txtfusion.projector.weight", "first.weight"), "Krea 2, which is another model"),
    "Chroma": (small_flux() | of("distilled_guidance_layer.norms.0.scale"), "Chroma"),
    "Ovis": (
        {name: shape for name, shape in small_flux().items() if "vector_in" not in name},
        "without pooled text",
    ),
    "HunyuanVideo": (
        small_flux() | of("txt_in.individual_token_refiner.blocks.0.norm1.weight"),
        "HunyuanVideo",
    ),
    "SD3": (of("joint_blocks.0.context_block.attn.qkv.weight"), "Stable Diffusion 3"),
    "AuraFlow": (of("double_layers.0.attn.w1q.weight"), "AuraFlow"),
    "Hunyuan DiT": (of("mlp_t5.0.weight"), "Hunyuan DiT"),
    "Mochi": (of("t5_yproj.weight"), "Mochi"),
    "PixArt": (of("t_block.1.weight"), "PixArt"),
    "Lumina 2": (of("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight"), "Lumina 2 or Z-Image"),
    "OmniGen 2": (of("time_caption_embed.timestep_embedder.linear_1.bias"), "OmniGen 2"),
    "Wan": (of("head.modulation", "blocks.0.self_attn.q.weight"), "is Wan"),
    "HiDream": (of("caption_projection.0.linear.weight"), "HiDream"),
    "Cosmos": (of("blocks.block0.blocks.0.block.attn.to_q.0.weight"), "Cosmos"),
    "Qwen-Image": (of("txt_norm.weight", "transformer_blocks.0.img_mod.1.weight"), "Qwen-Image"),
    "LTX": (of("adaln_single.emb.timestep_embedder.linear_1.bias"), "LTX-Video"),
    "Cascade": (of("clf.1.weight"), "Stable Cascade"),
    "SDXL UNet": (of("input_blocks.0.0.weight", "label_emb.0.0.weight"), "is SDXL"),
    "SD1 UNet": (of("input_blocks.0.0.weight"), "Stable Diffusion 1 or 2"),
    "diffusers UNet": (of("conv_in.weight", "down_blocks.0.resnets.0.norm1.weight"), "UNet in the diffusers layout"),
    "diffusers FLUX": (
        of(
            "x_embedder.weight",
            "transformer_blocks.0.attn.to_q.weight",
            "single_transformer_blocks.0.norm.linear.weight",
        ),
        "FLUX model in the diffusers layout.*single-file",
    ),
    "diffusers DiT": (of("transformer_blocks.0.attn.to_q.weight"), "transformer in the diffusers layout"),
    "FLUX checkpoint": (
        prefixed(small_flux()) | prefixed(vae(), "vae.") | prefixed(clip(32, 2, 64), "text_encoders.clip_l."),
        r"a full checkpoint \(in it a FLUX.1.*models/checkpoints",
    ),
    "SDXL checkpoint": (
        prefixed(of("input_blocks.0.0.weight", "label_emb.0.0.weight")) | prefixed(vae(4), "first_stage_model."),
        r"a full checkpoint \(in it SDXL",
    ),
    "Kohya LoRA": (of("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"), "a LoRA.*models/loras"),
    "diffusers LoRA": (of("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"), "a LoRA"),
    "BFL LoRA": (of("double_blocks.0.img_attn.qkv.lora_B.weight", "img_in.lora_A.weight"), "a LoRA"),
    "LoKr": (of("lycoris_double_blocks_0_img_attn_qkv.lokr_w1"), "a LoRA"),
    "ControlNet": (small_flux() | of("controlnet_blocks.0.weight"), "a ControlNet.*models/controlnet"),
    "SD ControlNet": (of("control_model.input_blocks.0.0.weight"), "a ControlNet"),
    "Redux": ({"redux_up.weight": (12288, 1152), "redux_down.weight": (4096, 12288)}, "Redux.*models/style_models"),
    "IP-Adapter": (of("ip_adapter_proj_model.proj.weight"), "an IP-Adapter"),
    "Nunchaku": (of("single_transformer_blocks.0.mlp_fc1.qweight"), "Nunchaku.*ComfyUI-nunchaku"),
    "NF4": (
        of("double_blocks.0.img_attn.qkv.weight", "double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4"),
        "bitsandbytes",
    ),
    "SD VAE": (vae(4), r"Stable Diffusion or SDXL VAE \(4 latent channels\)"),
    "FLUX.2 VAE": (vae(32) | of("bn.running_mean"), r"the FLUX.2 VAE \(32 latent channels\)"),
    "a VAE of 8 channels": (vae(8), "latent has not 16 channels"),
    "video VAE": ({"decoder.conv_in.weight": (512, 32, 3, 3, 3)}, "VAE for video"),
    "CogVideoX VAE": (of("decoder.conv_in.conv.weight"), "VAE for video"),
    "Wan VAE": (of("decoder.middle.0.residual.0.gamma", "encoder.conv1.weight"), "VAE of Wan or Qwen-Image"),
    "TAESD": (taesd(4), "preview VAE .*of another model"),
    "half a TAESD": (of("1.weight", "3.conv.0.weight", "19.weight"), "one half of.*taef1_encoder and taef1_decoder"),
    "CLIP-G": (clip(1280, 32, 5120), "CLIP-G"),
    "CLIP-H": (clip(1024, 23, 4096), "CLIP-H"),
    "SigLIP": (clip(1152, 27, 4304, vocabulary=32000) | of("logit_bias"), "SigLIP"),
    "CLIP in OpenAI's layout": (of("transformer.resblocks.0.ln_1.weight"), "OpenAI's own layout"),
    "CLIP vision": (of("vision_model.encoder.layers.0.mlp.fc1.weight"), "vision encoder.*models/clip_vision"),
    "UMT5": (t5(vocabulary=256384), "UMT5, the multilingual text encoder of Wan"),
    "mT5": (t5(64, 1, vocabulary=250112), "mT5"),
    "ByT5": (t5(64, 1, vocabulary=384), "T5 with another vocabulary"),
    "T5-base": (t5(768, 12, 12, 64, 3072, gated=False), "T5 of the first version"),
    "T5-Gemma": (of("model.encoder.layers.0.pre_self_attn_layernorm.weight"), "T5-Gemma"),
    "Qwen3-VL": (of("model.visual.deepstack_merger_list.0.norm.weight"), "the text encoder of Krea 2"),
    "GPT-OSS": (of("layers.0.self_attn.sinks"), "GPT-OSS"),
    "Gemma": (of(llm + "post_feedforward_layernorm.weight"), "Gemma"),
    "Qwen 2.5": (of(llm + "self_attn.k_proj.bias", llm + "self_attn.k_proj.weight"), r"Qwen 2\.5"),
    "Qwen 3": (of(llm + "self_attn.q_norm.weight", llm + "self_attn.k_proj.weight"), "Qwen 3"),
    "Llama": (of(llm + "self_attn.k_proj.weight"), "language model"),
    "unknown": (of("b", "a", "d", "c"), r"an unknown model with 4 tensors \(the first: a, b, c\)"),
    "no tensors": ({}, "an unknown model with 0 tensors"),
    "one shard of FLUX": (
        {name: shape for name, shape in small_flux().items() if not name.startswith("final_layer")},
        "only a part of a FLUX.1.*final_layer.linear.weight is missing.*shards",
    ),
    "one shard of T5": (
        {name: shape for name, shape in t5(64, 2).items() if "final" not in name},
        "only a part of a T5.*encoder.final_layer_norm.weight is missing",
    ),
    "a VAE decoder alone": (
        {name: shape for name, shape in vae().items() if name.startswith("decoder")},
        "only a part of a 16-channel VAE",
    ),
}


@pytest.mark.parametrize(("shapes", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_files_are_named(tmp_path, shapes, message):
    path = write_sparse(tmp_path / "model.safetensors", shapes)
    with pytest.raises(ModelFileError) as error:
        expect(path, MODEL, CLIP, T5, VAE)
    found, _, expected = str(error.value).partition("Expected: ")
    assert re.match(rf"model.safetensors .*{message}", found), found
    for file in (KREA_FP8, CLIP_L, T5_FP8_SCALED, AE):
        assert str(file) in expected


@pytest.mark.parametrize("name", ACCEPTED)
def test_right_files_are_refused_in_the_wrong_slot(tmp_path, name):
    shapes, slot = ACCEPTED[name]
    path = write_sparse(tmp_path / "model.safetensors", shapes)
    kind = identify(read_header(path))
    for slots in ((MODEL,), ENCODERS, (VAE,)):
        if slot not in slots:
            with pytest.raises(ModelFileError) as error:
                expect(path, *slots)
            wanted = " or ".join(other.value for other in slots)
            assert str(error.value).startswith(f"model.safetensors is {kind.title}, not the {wanted}. Expected: ")
            assert all(str(FILES[other][0]) in str(error.value) for other in slots)


def test_error_says_name_size_folder_and_address(tmp_path):
    path = write_sparse(tmp_path / "flux1-schnell.safetensors", small_flux(guidance=False))
    with pytest.raises(ModelFileError) as error:
        expect(path, MODEL)
    assert str(error.value) == (
        "flux1-schnell.safetensors is FLUX.1 [schnell] or a model made from it (no guidance embedding),"
        " not the FLUX.1 Krea [dev] diffusion model."
        " Expected: flux1-krea-dev_fp8_scaled.safetensors (11.9 GB) in models/diffusion_models, from"
        " https://huggingface.co/Comfy-Org/FLUX.1-Krea-dev_ComfyUI/resolve/main/split_files/diffusion_models/"
        "flux1-krea-dev_fp8_scaled.safetensors."
    )


def test_kontext_is_known_by_its_size(tmp_path):
    path = tmp_path / "model.safetensors"
    size = 11904640136
    padding = 10**10
    for _ in range(3):  # the padding's length is itself written in the header
        write_sparse(path, small_flux() | {"padding": (padding,)}, "U8")
        padding += size - path.stat().st_size
    assert path.stat().st_size == size
    with pytest.raises(ModelFileError, match=r"Kontext \[dev\] .*told by its size of 11,904,640,136 bytes"):
        expect(path, MODEL)


def test_header_errors_also_say_what_was_expected(tmp_path):
    path = write_header(tmp_path / "ae.safetensors", b"{")
    with pytest.raises(ModelFileError) as error:
        expect(path, VAE)
    assert "damaged" in str(error.value) and str(AE) in str(error.value)


def test_wrong_ending_is_told(tmp_path):
    path = write_sparse(tmp_path / "model.bin", small_flux())
    with pytest.raises(ModelFileError, match="Rename it to end in .safetensors"):
        expect(path, MODEL)


def test_catalogue():
    files = [file for files in FILES.values() for file in files]
    assert all(file.url.endswith("/" + file.name) and os.path.basename(file.name) == file.name for file in files)
    assert all(len(file.sha256) == 64 for file in files if file.sha256)
    assert find_by_hash(KREA_FP8.sha256) is KREA_FP8
    assert find_by_hash("0" * 64) is None
    # The hash that is published for Krea is that of FLUX.1 [dev].
    dev = find_by_hash("4610115bb0c89560703c892c59ac2742fa821e60ef5871b33493ba544683abd7")
    assert dev.title == "FLUX.1 [dev]"
    # Known by its beginning.
    assert find_by_hash("843a26dc765d3105" + "7" * 48).title == "FLUX.1 Kontext [dev]"
    assert find_by_hash("4610115bb0c89560" + "7" * 48) is None
