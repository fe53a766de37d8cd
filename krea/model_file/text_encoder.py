"""The sizes of a text encoder, read from its tensor shapes, in the words of its Hugging Face config."""

from .header import Header, attention_heads
from .kinds import CLIP_EMBEDDING, T5_BIAS, T5_EMBEDDING, Weights

CLIP_L_CONFIG = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
T5_XXL_CONFIG = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24}
_CLIP_HEAD_WIDTH = 64


def clip_config(header: Header) -> dict[str, int]:
    """Sizes of a CLIP text model, whose published heads are 64 wide.

    Raises:
        ModelFileError: the number of heads in the file's metadata cannot be.
    """
    weights = Weights(header.tensors)
    hidden = weights.size(CLIP_EMBEDDING, 1)
    return {
        "hidden_size": hidden,
        "intermediate_size": weights.size("text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "num_attention_heads": attention_heads(header, "The CLIP-L text encoder", hidden, _CLIP_HEAD_WIDTH),
        "num_hidden_layers": weights.count("text_model.encoder.layers."),
    }


def t5_config(header: Header) -> dict[str, int]:
    """Sizes of a T5 encoder; the relative attention bias [buckets, heads] gives the number of heads."""
    weights = Weights(header.tensors)
    heads = weights.size(T5_BIAS.format(0), 1)
    return {
        "d_model": weights.size(T5_EMBEDDING, 1),
        "d_ff": weights.size("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0),
        "d_kv": weights.size("encoder.block.0.layer.0.SelfAttention.q.weight", 0) // max(1, heads),
        "num_heads": heads,
        "num_layers": weights.count("encoder.block."),
    }


def is_quantized(header: Header) -> bool:
    """Whether ComfyUI will load the file with per-layer scales (scaled fp8 and newer formats)."""
    return (
        "scaled_fp8" in header.tensors
        or "_quantization_metadata" in header.metadata
        or Weights(header.tensors).ends(".comfy_quant")
    )
