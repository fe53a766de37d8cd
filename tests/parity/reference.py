"""diffusers' FluxPipeline on the small model's own weight files: the reference for parity, in float32."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxPriorReduxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from safetensors.torch import load_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

Weights = dict[str, torch.Tensor]

HEAD_DIM = 128
# Black Forest Labs' names -> diffusers' names
TOP_LEVEL = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
DOUBLE_BLOCK = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
DOUBLE_NORM = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
QKV = {"img_attn": ("to_q", "to_k", "to_v"), "txt_attn": ("add_q_proj", "add_k_proj", "add_v_proj")}


def flux_pipeline(flux: Path, clip_l: Path, t5: Path, comfyui: Path) -> FluxPipeline:
    """The pipeline on these files, with the tokenizers that ComfyUI carries (they are the published ones)."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=None,  # latents are compared
        text_encoder=clip_text_model(_float_weights(clip_l)),
        tokenizer=CLIPTokenizer.from_pretrained(comfyui / "comfy" / "sd1_tokenizer", model_max_length=77),
        text_encoder_2=t5_encoder(_float_weights(t5)),
        tokenizer_2=T5TokenizerFast.from_pretrained(comfyui / "comfy" / "text_encoders" / "t5_tokenizer"),
        transformer=transformer(_float_weights(flux)),
    )


def redux_pipeline(siglip: Path, redux: Path, config: SiglipVisionConfig, flux: FluxPipeline) -> FluxPriorReduxPipeline:
    """The pipeline that puts a picture's tokens behind a prompt's, with the text encoders of `flux`."""
    vision, adapter = SiglipVisionModel(config), _float_weights(redux)
    weights = _float_weights(siglip)
    wanted = vision.state_dict()
    renamed = {name if name in wanted else name.removeprefix("vision_model."): x for name, x in weights.items()}
    vision.load_state_dict(renamed)
    embedder = ReduxImageEncoder(config.hidden_size, len(adapter["redux_down.bias"]))
    embedder.load_state_dict(adapter)
    side = {"height": config.image_size, "width": config.image_size}
    return FluxPriorReduxPipeline(
        image_encoder=vision.eval(),
        feature_extractor=SiglipImageProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        image_embedder=embedder.eval(),
        text_encoder=flux.text_encoder,
        tokenizer=flux.tokenizer,
        text_encoder_2=flux.text_encoder_2,
        tokenizer_2=flux.tokenizer_2,
    )


def _float_weights(path: Path) -> Weights:
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def _block_count(weights: Weights, kind: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith(f"{kind}."))


def transformer(weights: Weights) -> FluxTransformer2DModel:
    width = weights["img_in.weight"].shape[0]
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=weights["img_in.weight"].shape[1],
        num_layers=_block_count(weights, "double_blocks"),
        num_single_layers=_block_count(weights, "single_blocks"),
        attention_head_dim=HEAD_DIM,
        num_attention_heads=width // HEAD_DIM,
        joint_attention_dim=weights["txt_in.weight"].shape[1],
        pooled_projection_dim=weights["vector_in.in_layer.weight"].shape[1],
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    model.load_state_dict(_diffusers_names(weights, width))
    return model


def _diffusers_names(weights: Weights, width: int) -> Weights:
    out = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if module in TOP_LEVEL:
            out[f"{TOP_LEVEL[module]}.{kind}"] = tensor
        elif module == "final_layer.adaLN_modulation.1":
            shift, scale = tensor.chunk(2)
            out[f"norm_out.linear.{kind}"] = torch.cat((scale, shift))
        elif module.startswith("double_blocks."):
            _, number, part = module.split(".", 2)
            out |= _double_block(f"transformer_blocks.{number}", part, kind, tensor)
        else:
            _, number, part = module.split(".", 2)
            out |= _single_block(f"single_transformer_blocks.{number}", part, kind, tensor, width)
    return out


def _double_block(block: str, part: str, kind: str, tensor: torch.Tensor) -> Weights:
    if part in DOUBLE_BLOCK:
        return {f"{block}.{DOUBLE_BLOCK[part]}.{kind}": tensor}
    if part in DOUBLE_NORM:
        return {f"{block}.{DOUBLE_NORM[part]}.weight": tensor}
    names = QKV[part.removesuffix(".qkv")]
    return {f"{block}.attn.{n}.{kind}": x for n, x in zip(names, tensor.chunk(3), strict=True)}


def _single_block(block: str, part: str, kind: str, tensor: torch.Tensor, width: int) -> Weights:
    if part == "linear1":
        q, k, v, mlp = tensor.split([width, width, width, len(tensor) - 3 * width])
        names = {"attn.to_q": q, "attn.to_k": k, "attn.to_v": v, "proj_mlp": mlp}
        return {f"{block}.{n}.{kind}": x for n, x in names.items()}
    names = {
        "linear2": f"proj_out.{kind}",
        "modulation.lin": f"norm.linear.{kind}",
        "norm.query_norm": "attn.norm_q.weight",
        "norm.key_norm": "attn.norm_k.weight",
    }
    return {f"{block}.{names[part]}": tensor}


def clip_text_model(weights: Weights) -> CLIPTextModel:
    layers = "text_model.encoder.layers."
    width = weights["text_model.embeddings.token_embedding.weight"].shape[1]
    config = CLIPTextConfig(
        vocab_size=weights["text_model.embeddings.token_embedding.weight"].shape[0],
        hidden_size=width,
        intermediate_size=weights[f"{layers}0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.split(".")[3]) for name in weights if name.startswith(layers)),
        num_attention_heads=max(1, width // 64),
        hidden_act="quick_gelu",
        eos_token_id=49407,
    )
    return _loaded(CLIPTextModel(config), weights, unused=("text_projection", "position_ids"))


def t5_encoder(weights: Weights) -> T5EncoderModel:
    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = weights[f"{attention}.relative_attention_bias.weight"].shape[1]
    config = T5Config(
        vocab_size=weights["shared.weight"].shape[0],
        d_model=weights["shared.weight"].shape[1],
        d_kv=weights[f"{attention}.q.weight"].shape[0] // heads,
        d_ff=weights["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        num_layers=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.block.")),
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    return _loaded(T5EncoderModel(config), weights)


def _loaded(model, weights: Weights, unused: tuple[str, ...] = ()):
    wanted = model.state_dict()
    # transformers 5 dropped the text_model prefix of CLIP and ties T5's embedding under two names.
    renamed = {name if name in wanted else name.removeprefix("text_model."): x for name, x in weights.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert all(name == "encoder.embed_tokens.weight" or "position_ids" in name for name in missing), missing
    assert all(name.startswith(unused) if unused else False for name in unexpected), unexpected
    return model.eval()
