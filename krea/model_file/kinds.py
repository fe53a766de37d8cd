"""The kinds of model files, and the tensor names and shapes that give each away.

The names are those by which ComfyUI itself recognises models (comfy/model_detection.py, comfy/sd.py).
FLUX.1 [dev], Krea [dev] and Kontext [dev] share every name and shape: only a hash tells them apart.
"""

from collections.abc import Callable
from typing import NamedTuple

from .catalogue import Slot
from .header import Tensor


class Kind(NamedTuple):
    """What a file is: a title for messages, the slot that it fits (if any), what to do with it otherwise."""

    title: str
    slot: Slot | None = None
    advice: str = ""
    needs: tuple[str, ...] = ()  # tensors without which a file that fits its slot is incomplete


class Weights(dict[str, Tensor]):
    """Tensors by name, with the few questions that telling models apart takes."""

    def size(self, name: str, axis: int) -> int:
        """Length of one axis; 0 when the tensor or the axis is missing."""
        shape = self[name].shape if name in self else ()
        return shape[axis] if axis < len(shape) else 0

    def starts(self, *prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in self)

    def ends(self, *suffixes: str) -> bool:
        return any(name.endswith(suffixes) for name in self)

    def contains(self, *parts: str) -> bool:
        return any(part in name for name in self for part in parts)

    def count(self, prefix: str) -> int:
        """How many layers there are: different words between `prefix` and the next dot."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self if name.startswith(prefix)})


Rule = tuple[Callable[[Weights], bool], Kind]

_IN = "It belongs in models/{}.".format
_SINGLE_FILE = "ComfyUI's loaders want the single-file version."

REDUX_UP, REDUX_DOWN = "redux_up.weight", "redux_down.weight"
_REDUX_NEEDS = (REDUX_UP, "redux_up.bias", REDUX_DOWN, "redux_down.bias")

_ADAPTERS: tuple[Rule, ...] = (
    (
        lambda w: w.contains(
            *(".lora_A.", ".lora_B.", ".lora_up.", ".lora_down.", ".lora.up.", ".lora.down."),
            *(".lokr_w", ".hada_w", ".oft_blocks"),
        ),
        Kind("a LoRA", advice=_IN("loras")),
    ),
    (
        lambda w: REDUX_UP in w,
        Kind("FLUX.1 Redux, a style model", Slot.REDUX, advice=_IN("style_models"), needs=_REDUX_NEEDS),
    ),
    (
        lambda w: w.starts("controlnet_", "controlnet.", "control_model.", "zero_convs.", "input_hint_block."),
        Kind("a ControlNet", advice=_IN("controlnet")),
    ),
    (lambda w: w.starts("ip_adapter", "image_proj."), Kind("an IP-Adapter")),
)

_OTHER_FORMATS: tuple[Rule, ...] = (
    (
        lambda w: w.ends(".qweight", ".wscales"),
        Kind("a Nunchaku (SVDQuant) model", advice="Load it with the ComfyUI-nunchaku pack."),
    ),
    (
        lambda w: w.contains(".quant_state.bitsandbytes__"),
        Kind("a bitsandbytes (NF4 or FP4) model", advice="ComfyUI's own loaders do not read this format."),
    ),
)

_FLUX_NEEDS = (
    *("img_in.weight", "txt_in.weight", "time_in.in_layer.weight", "vector_in.in_layer.weight"),
    *("single_blocks.0.linear1.weight", "final_layer.linear.weight"),
)


def _is_flux(w: Weights) -> bool:
    return "img_in.weight" in w and w.starts("double_blocks.0.img_attn.qkv.")


_DIFFUSION_MODELS: tuple[Rule, ...] = (
    (
        lambda w: "txtfusion.projector.weight" in w,
        Kind("Krea 2, which is another model than FLUX.1 Krea [dev]"),
    ),
    (lambda w: w.starts("double_stream_modulation_img."), Kind("FLUX.2")),
    (lambda w: w.starts("distilled_guidance_layer."), Kind("Chroma")),
    (lambda w: w.starts("txt_in.individual_token_refiner."), Kind("HunyuanVideo or HunyuanImage")),
    (
        lambda w: _is_flux(w) and not w.starts("vector_in."),
        Kind("a FLUX-like model without pooled text (Ovis, LongCat-Image or similar)"),
    ),
    (
        lambda w: _is_flux(w) and w.size("img_in.weight", 1) == 384,
        Kind("FLUX.1 Fill [dev], an inpainting model (96 input channels)"),
    ),
    (
        lambda w: _is_flux(w) and w.size("img_in.weight", 1) == 128,
        Kind("FLUX.1 Canny [dev] or Depth [dev] (32 input channels)"),
    ),
    (
        lambda w: _is_flux(w) and w.size("img_in.weight", 1) != 64,
        Kind("a FLUX.1 model whose latent has not 16 channels"),
    ),
    (
        lambda w: _is_flux(w) and "guidance_in.in_layer.weight" not in w,
        Kind("FLUX.1 [schnell] or a model made from it (no guidance embedding)"),
    ),
    (
        lambda w: w.starts("double_blocks.0.img_attn.qkv."),
        Kind("a FLUX.1 [dev]-shaped diffusion model", Slot.DIFFUSION_MODEL, needs=_FLUX_NEEDS),
    ),
    (
        lambda w: w.starts("single_transformer_blocks."),
        Kind("a FLUX model in the diffusers layout", advice=_SINGLE_FILE),
    ),
    (lambda w: w.starts("joint_blocks."), Kind("Stable Diffusion 3")),
    (lambda w: w.starts("double_layers.0.attn.w1q"), Kind("AuraFlow")),
    (lambda w: w.starts("mlp_t5."), Kind("Hunyuan DiT")),
    (lambda w: w.starts("t5_yproj."), Kind("Mochi")),
    (lambda w: w.starts("t_block.1."), Kind("PixArt")),
    (lambda w: w.starts("cap_embedder.1."), Kind("Lumina 2 or Z-Image")),
    (lambda w: w.starts("time_caption_embed."), Kind("OmniGen 2")),
    (lambda w: "head.modulation" in w, Kind("Wan")),
    (lambda w: w.starts("caption_projection.0.linear."), Kind("HiDream")),
    (lambda w: w.starts("blocks.block0.", "blocks.0.mlp.layer1."), Kind("Cosmos")),
    (lambda w: "txt_norm.weight" in w, Kind("Qwen-Image")),
    (lambda w: w.starts("adaln_single."), Kind("LTX-Video or PixArt")),
    (lambda w: w.starts("clf.1."), Kind("Stable Cascade")),
    (lambda w: w.starts("input_blocks.0.") and w.starts("label_emb."), Kind("SDXL")),
    (lambda w: w.starts("input_blocks.0."), Kind("Stable Diffusion 1 or 2")),
    (
        lambda w: "conv_in.weight" in w and w.starts("down_blocks.0."),
        Kind("a Stable Diffusion UNet in the diffusers layout", advice=_SINGLE_FILE),
    ),
    (
        lambda w: w.starts("transformer_blocks."),
        Kind("a diffusion transformer in the diffusers layout", advice=_SINGLE_FILE),
    ),
)

_KL_NEEDS = ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_out.weight")
_TAESD_NEEDS = ("taesd_encoder.0.weight", "taesd_decoder.19.weight")
_VAE_IN = "decoder.conv_in.weight"
_TAESD_IN = "taesd_decoder.1.weight"

_AUTOENCODERS: tuple[Rule, ...] = (
    (lambda w: w.size(_TAESD_IN, 1) == 16, Kind("a 16-channel TAESD", Slot.VAE, needs=_TAESD_NEEDS)),
    (lambda w: _TAESD_IN in w, Kind("a small preview VAE (TAESD) of another model: its latent has not 16 channels")),
    (
        lambda w: "3.conv.0.weight" in w and w.starts("0.", "1."),
        Kind(
            "one half of a small preview VAE (TAESD)",
            advice="Put taef1_encoder and taef1_decoder in models/vae_approx and choose taef1.",
        ),
    ),
    (lambda w: w.size(_VAE_IN, 4) > 0, Kind("a VAE for video (3D convolutions)")),
    (lambda w: w.size(_VAE_IN, 1) == 16, Kind("a 16-channel VAE", Slot.VAE, needs=_KL_NEEDS)),
    (lambda w: w.size(_VAE_IN, 1) == 4, Kind("a Stable Diffusion or SDXL VAE (4 latent channels)")),
    (lambda w: w.size(_VAE_IN, 1) == 32, Kind("the FLUX.2 VAE (32 latent channels)")),
    (lambda w: _VAE_IN in w, Kind("a VAE of another model: its latent has not 16 channels")),
    (lambda w: w.starts("decoder.middle.0.residual."), Kind("the VAE of Wan or Qwen-Image")),
    (
        lambda w: w.starts("decoder.conv_in.conv.", "decoder.unpatcher3d.", "decoder.up_blocks.0.res_blocks."),
        Kind("a VAE for video"),
    ),
)

CLIP_EMBEDDING = "text_model.embeddings.token_embedding.weight"
CLIP_POSITIONS = "text_model.embeddings.position_embedding.weight"
T5_EMBEDDING = "shared.weight"
T5_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
_CLIP_LAYER = "text_model.encoder.layers.{}.mlp.fc1.weight".format
_CLIP_NEEDS = (CLIP_EMBEDDING, CLIP_POSITIONS, "text_model.final_layer_norm.weight", _CLIP_LAYER(1))
_T5_NEEDS = (T5_EMBEDDING, "encoder.final_layer_norm.weight", T5_BIAS.format(0))
_CLIP_VOCABULARY = 49408
_T5_VOCABULARY = 32128
_UMT5_VOCABULARY = 256384
_MT5_VOCABULARY = 250112


def _is_clip(w: Weights) -> bool:
    return _CLIP_LAYER(0) in w


def _is_t5(w: Weights) -> bool:
    return w.starts("encoder.block.0.layer.0.SelfAttention.q.")


SIGLIP_PATCH = "vision_model.embeddings.patch_embedding.weight"
SIGLIP_POSITIONS = "vision_model.embeddings.position_embedding.weight"
SIGLIP_LAYER = "vision_model.encoder.layers."
_SIGLIP_NEEDS = (
    SIGLIP_PATCH,
    SIGLIP_POSITIONS,
    "vision_model.post_layernorm.weight",
    SIGLIP_LAYER + "0.mlp.fc1.weight",
)
_CLIP_VISION_CLASS = "vision_model.embeddings.class_embedding"

_TEXT_ENCODERS: tuple[Rule, ...] = (
    (
        lambda w: _is_clip(w) and ("logit_bias" in w or w.size(CLIP_EMBEDDING, 0) not in (0, _CLIP_VOCABULARY)),
        Kind("a SigLIP or CLIP model with another vocabulary than CLIP-L's"),
    ),
    (lambda w: _CLIP_LAYER(30) in w, Kind("CLIP-G, the large text encoder of SDXL")),
    (lambda w: _CLIP_LAYER(22) in w, Kind("CLIP-H, the text encoder of Stable Diffusion 2")),
    (_is_clip, Kind("a CLIP-L text encoder", Slot.CLIP_L, needs=_CLIP_NEEDS)),
    (
        lambda w: w.starts("transformer.resblocks.0."),
        Kind("a CLIP text encoder in OpenAI's own layout", advice="Get the one with text_model.* names."),
    ),
    (lambda w: _is_t5(w) and w.size(T5_EMBEDDING, 0) == _MT5_VOCABULARY, Kind("mT5, a multilingual T5")),
    (
        lambda w: _is_t5(w) and (w.size(T5_EMBEDDING, 0) == _UMT5_VOCABULARY or T5_BIAS.format(1) in w),
        Kind("UMT5, the multilingual text encoder of Wan"),
    ),
    (
        lambda w: _is_t5(w) and w.size(T5_EMBEDDING, 0) not in (0, _T5_VOCABULARY),
        Kind("a T5 with another vocabulary than T5-XXL's"),
    ),
    (
        lambda w: _is_t5(w) and w.starts("encoder.block.0.layer.1.DenseReluDense.wi."),
        Kind("a T5 of the first version (no gated activation), such as T5-base"),
    ),
    (_is_t5, Kind("a T5 text encoder", Slot.T5, needs=_T5_NEEDS)),
    (lambda w: w.starts("model.encoder.layers.0.pre_self_attn_layernorm."), Kind("T5-Gemma, a text encoder")),
    (
        lambda w: w.starts("model.visual.deepstack_merger_list.", "visual.deepstack_merger_list."),
        Kind("Qwen3-VL, the text encoder of Krea 2"),
    ),
    (lambda w: w.starts("layers.0.self_attn.sinks"), Kind("GPT-OSS, a language model")),
    (lambda w: w.starts("model.layers.0.post_feedforward_layernorm."), Kind("Gemma, a language model")),
    (lambda w: w.starts("model.layers.0.self_attn.k_proj.bias"), Kind("Qwen 2.5, a language model")),
    (lambda w: w.starts("model.layers.0.self_attn.q_norm."), Kind("Qwen 3, a language model")),
    (
        lambda w: w.starts("model.layers.0.", "model.language_model.layers.0."),
        Kind("a language model (Llama, Mistral or similar)"),
    ),
    (
        lambda w: w.size(SIGLIP_PATCH, 3) > 0 and _CLIP_VISION_CLASS not in w,
        Kind("a SigLIP vision encoder", Slot.VISION, advice=_IN("clip_vision"), needs=_SIGLIP_NEEDS),
    ),
    (
        lambda w: w.starts("vision_model.", "visual.", "model.vision_model."),
        Kind("a vision encoder of another kind than SigLIP", advice=_IN("clip_vision")),
    ),
)

# The first rule that holds names the file; a rule may rely on those above it.
RULES: tuple[Rule, ...] = (*_ADAPTERS, *_OTHER_FORMATS, *_DIFFUSION_MODELS, *_AUTOENCODERS, *_TEXT_ENCODERS)
