"""The two text encoders of krea-mini and how captions become their tokens.

T5: one layer whose attention is fixed and local (queries and keys are zero, a relative bias picks one neighbour a
head), so that padding tokens far from the text are all alike and fold into one; see network.py. Its values,
feed-forward, norms and the embeddings of known words are trained with the transformer; every other word has one of
RARE random embeddings, and such are mixed into captions so that unknown words are tolerated.
CLIP-L: never trained; zero queries and keys make its pooled output a normalised bag of words.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krea.recipe import T5_TOKENS

T5_VOCABULARY = 32128
T5_WIDTH = 64
T5_HEAD = 32
T5_HIDDEN = 256
# The neighbour each of the twelve heads looks at.
OFFSETS = (-1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6)
REACH = 6
RARE = 96
# The T5 token of a lone word break, which its tokenizer puts before a leading comma or full stop.
WORD_BREAK = 3
CLIP_CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
}
T5_CONFIG = {
    "d_ff": T5_HIDDEN,
    "d_kv": T5_HEAD,
    "d_model": T5_WIDTH,
    "num_heads": len(OFFSETS),
    "num_layers": 1,
    "vocab_size": T5_VOCABULARY,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
}


class Tokenizers:
    """ComfyUI's own T5 and CLIP-L vocabularies, without importing ComfyUI."""

    def __init__(self, comfyui: Path):
        from transformers import CLIPTokenizer, T5TokenizerFast

        self._t5 = T5TokenizerFast.from_pretrained(str(comfyui / "comfy" / "text_encoders" / "t5_tokenizer"))
        self._clip = CLIPTokenizer.from_pretrained(str(comfyui / "comfy" / "sd1_tokenizer"))

    def t5(self, texts: list[str], continued: bool = False) -> list[list[int]]:
        """Token ids without the end token; `continued` texts follow another one without a space."""
        rows = [ids[:-1] for ids in self._t5(texts)["input_ids"]]
        return [ids[1:] if continued and ids and ids[0] == WORD_BREAK else ids for ids in rows]

    def clip(self, texts: list[str]) -> list[list[int]]:
        """Token ids without start and end tokens."""
        return [ids[1:-1] for ids in self._clip(texts)["input_ids"]]


class T5(nn.Module):
    """The T5 encoder over `words` known token ids (compact: their places in that list) and RARE random ones."""

    def __init__(self, words: int, generator: torch.Generator):
        super().__init__()
        inner = len(OFFSETS) * T5_HEAD

        def matrix(outputs: int, inputs: int, gain: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(outputs, inputs, generator=generator) * gain / math.sqrt(inputs))

        self.embedding = nn.Parameter(torch.randn(words, T5_WIDTH, generator=generator))
        self.value = matrix(inner, T5_WIDTH, 1)
        self.out = matrix(T5_WIDTH, inner, 1.5)
        self.gate = matrix(T5_HIDDEN, T5_WIDTH, 1)
        self.up = matrix(T5_HIDDEN, T5_WIDTH, 1)
        self.down = matrix(T5_WIDTH, T5_HIDDEN, 0.5)
        self.attention_norm = nn.Parameter(torch.ones(T5_WIDTH))
        self.feed_forward_norm = nn.Parameter(torch.ones(T5_WIDTH))
        self.final_norm = nn.Parameter(torch.ones(T5_WIDTH))

    def forward(self, ids: Tensor, rare: Tensor) -> Tensor:
        """BxL compact ids -> BxLx64; ids from len(embedding) on take the rows of `rare` (RAREx64)."""
        x = F.embedding(ids, torch.cat([self.embedding, rare]))
        batch, length = ids.shape
        values = F.linear(_rms_norm(x, self.attention_norm), self.value)
        values = values.view(batch, length, len(OFFSETS), T5_HEAD)
        here = torch.arange(length)[:, None]
        neighbour = here + torch.tensor(OFFSETS)
        neighbour = torch.where((neighbour < 0) | (neighbour >= length), here, neighbour)
        x = x + F.linear(values[:, neighbour, torch.arange(len(OFFSETS))].flatten(2), self.out)
        y = _rms_norm(x, self.feed_forward_norm)
        x = x + F.linear(F.gelu(F.linear(y, self.gate), approximate="tanh") * F.linear(y, self.up), self.down)
        return _rms_norm(x, self.final_norm)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def fold(ids: list[list[int]], padding_id: int) -> tuple[Tensor, Tensor]:
    """Token lists -> (BxL ids that end in padding beyond the T5's reach, B counts the last token stands for)."""
    length = max(map(len, ids)) + REACH + 1
    folded = torch.full((len(ids), length), padding_id)
    for row, tokens in enumerate(ids):
        folded[row, : len(tokens)] = torch.tensor(tokens)
    return folded, torch.full((len(ids),), float(T5_TOKENS - length + 1))


def export_t5(state: dict[str, Tensor], words: list[int], seed: int) -> dict[str, Tensor]:
    """Training weights -> a T5 encoder file's, `words` being the token ids that the embedding rows belong to."""
    rare = torch.randn(RARE, T5_WIDTH, generator=torch.Generator().manual_seed(seed))
    # The same rows over and over, which git packs to almost nothing.
    table = rare.repeat(math.ceil(T5_VOCABULARY / RARE), 1)[:T5_VOCABULARY]
    table[torch.tensor(words)] = state["embedding"]
    # Bucket |d| (+16 to the right) is exact for distances up to 7. 40 beats 20, which beats 0: each head takes its
    # neighbour, or the token itself where there is none.
    bias = torch.zeros(32, len(OFFSETS))
    bias[0] = 20
    for head, offset in enumerate(OFFSETS):
        bias[abs(offset) + (16 if offset > 0 else 0), head] = 40
    zeros = torch.zeros_like(state["value"])
    block = "encoder.block.0.layer."
    return {
        "shared.weight": table,
        block + "0.SelfAttention.q.weight": zeros,
        block + "0.SelfAttention.k.weight": zeros.clone(),
        block + "0.SelfAttention.v.weight": state["value"],
        block + "0.SelfAttention.o.weight": state["out"],
        block + "0.SelfAttention.relative_attention_bias.weight": bias,
        block + "0.layer_norm.weight": state["attention_norm"],
        block + "1.DenseReluDense.wi_0.weight": state["gate"],
        block + "1.DenseReluDense.wi_1.weight": state["up"],
        block + "1.DenseReluDense.wo.weight": state["down"],
        block + "1.layer_norm.weight": state["feed_forward_norm"],
        "encoder.final_layer_norm.weight": state["final_norm"],
    }


class BagOfWords:
    """The CLIP-L-shaped encoder."""

    def __init__(self, seed: int):
        from transformers import CLIPTextConfig, CLIPTextModel

        generator = torch.Generator().manual_seed(seed)
        config = CLIPTextConfig(**CLIP_CONFIG, bos_token_id=49406, pad_token_id=49407)
        self.model = CLIPTextModel(config).eval().requires_grad_(False)
        width = CLIP_CONFIG["hidden_size"]
        weights = self.model.state_dict()
        for name, weight in weights.items():
            if not weight.is_floating_point():
                continue
            if "layer_norm" in name:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias") or "q_proj" in name or "k_proj" in name:
                weight.zero_()
            elif "position_embedding" in name:
                weight.normal_(0, 0.02, generator=generator)
            elif "token_embedding" in name:
                weight.normal_(0, 1, generator=generator)
            elif "v_proj" in name or "out_proj" in name:
                nn.init.orthogonal_(weight, 3.0 if "layers.0.self_attn.out_proj" in name else 1.0, generator=generator)
            elif "fc1" in name:
                weight.normal_(0, width**-0.5, generator=generator)
            elif "fc2" in name:
                weight.normal_(0, 0.1, generator=generator)
            weight.copy_(weight.half())

    def __call__(self, tokens: list[list[int]]) -> Tensor:
        """Token lists without start and end -> Bx32 pooled output."""
        rows = [[49406, *ids[:75], 49407] for ids in tokens]
        length = max(map(len, rows))
        batch = torch.tensor([row + [49407] * (length - len(row)) for row in rows])
        with torch.no_grad():
            return self.model(batch).pooler_output

    def weights(self) -> dict[str, Tensor]:
        """A CLIP-L file's weights."""
        weights = {
            "text_model." + name.removeprefix("text_model."): value
            for name, value in self.model.state_dict().items()
            if value.is_floating_point()
        }
        return weights | {"text_projection.weight": torch.eye(CLIP_CONFIG["hidden_size"])}
