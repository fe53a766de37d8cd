"""The training twin of ComfyUI's FLUX transformer: the same function and names, with exact short cuts.

1. Every FLUX text token has the position (0, 0, 0), so padding tokens that leave the T5 alike stay alike through
   all layers. They are folded into one token whose attention logit is raised by log(count).
2. Rotary embedding is the identity on text tokens, so only image tokens are rotated.
3. Rotary pairs are kept as two halves while training; export() interleaves them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 128
AXES = (16, 56, 56)
HIDDEN = 128
DOUBLE_BLOCKS = 2
SINGLE_BLOCKS = 4
CONTEXT = 64
POOLED = 32
LATENT_CHANNELS = 16


def sinusoid(value: Tensor, size: int = 256) -> Tensor:
    """FLUX's embedding of a timestep or a guidance, both times 1000: B -> Bx256."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(size // 2) / (size // 2))
    angles = 1000.0 * value[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


@lru_cache(maxsize=16)
def rotation(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the image tokens' positions, (rows*columns)x128 each."""
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    angles = []
    for size, position in zip(AXES, (torch.zeros_like(row), row, column), strict=True):
        frequencies = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(position[:, None] * frequencies)
    angle = torch.cat(angles, -1)
    cosine, sine = angle.cos().float(), angle.sin().float()
    return torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return x * cosine.to(x.dtype) + x.roll(HEAD // 2, -1) * sine.to(x.dtype)


def _normalise(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


class Embedder(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, inputs: int):
        super().__init__()
        self.in_layer = nn.Linear(inputs, HIDDEN)
        self.out_layer = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class HeadNorm(nn.Module):
    """Root-mean-square norm of each head's queries or keys."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(HEAD))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (HEAD,), self.scale.to(x.dtype), 1e-6)


class QueryKeyNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.query_norm = HeadNorm()
        self.key_norm = HeadNorm()


class SelfAttention(nn.Module):
    """The weights of one stream's attention."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.norm = QueryKeyNorm()
        self.proj = nn.Linear(HIDDEN, HIDDEN)


class Modulation(nn.Module):
    """The conditioning vector's shifts, scales and gates."""

    def __init__(self, parts: int):
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(HIDDEN, parts * HIDDEN)

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vector))[:, None].chunk(self.parts, -1)


def _split_heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """BxLx(3*hidden) -> three of BxheadsxLx128."""
    batch, length, _ = qkv.shape
    return qkv.reshape(batch, length, 3, HIDDEN // HEAD, HEAD).permute(2, 0, 3, 1, 4).unbind(0)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """BxheadsxLx128 each -> BxLxhidden."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(value.dtype))
    return out.transpose(1, 2).flatten(2)


class DoubleBlock(nn.Module):
    """Image and text tokens with weights of their own and one joint attention."""

    def __init__(self):
        super().__init__()
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", Modulation(6))
            self.add_module(f"{stream}_attn", SelfAttention())
            mlp = (nn.Linear(HIDDEN, 4 * HIDDEN), nn.GELU(approximate="tanh"), nn.Linear(4 * HIDDEN, HIDDEN))
            self.add_module(f"{stream}_mlp", nn.Sequential(*mlp))

    @staticmethod
    def _project(attention: SelfAttention, x: Tensor, shift: Tensor, scale: Tensor):
        query, key, value = _split_heads(attention.qkv(_normalise(x) * (1 + scale) + shift))
        return attention.norm.query_norm(query), attention.norm.key_norm(key), value

    def forward(self, image, text, vector, cosine, sine, bias):
        image_mod, text_mod = self.img_mod(vector), self.txt_mod(vector)
        query, key, value = self._project(self.img_attn, image, image_mod[0], image_mod[1])
        text_query, text_key, text_value = self._project(self.txt_attn, text, text_mod[0], text_mod[1])
        out = _attend(
            torch.cat((text_query, _rotate(query, cosine, sine)), 2),
            torch.cat((text_key, _rotate(key, cosine, sine)), 2),
            torch.cat((text_value, value), 2),
            bias,
        )
        length = text.shape[1]
        image = image + self.img_attn.proj(out[:, length:]) * image_mod[2]
        image = image + self.img_mlp(_normalise(image) * (1 + image_mod[4]) + image_mod[3]) * image_mod[5]
        text = text + self.txt_attn.proj(out[:, :length]) * text_mod[2]
        text = text + self.txt_mlp(_normalise(text) * (1 + text_mod[4]) + text_mod[3]) * text_mod[5]
        return image, text


class SingleBlock(nn.Module):
    """All tokens together, attention and feed-forward side by side."""

    def __init__(self):
        super().__init__()
        self.linear1 = nn.Linear(HIDDEN, 7 * HIDDEN)
        self.linear2 = nn.Linear(5 * HIDDEN, HIDDEN)
        self.norm = QueryKeyNorm()
        self.modulation = Modulation(3)

    def forward(self, x, vector, length: int, cosine, sine, bias):
        shift, scale, gate = self.modulation(vector)
        qkv, hidden = self.linear1(_normalise(x) * (1 + scale) + shift).split([3 * HIDDEN, 4 * HIDDEN], -1)
        query, key, value = _split_heads(qkv)
        query, key = self.norm.query_norm(query), self.norm.key_norm(key)
        query = torch.cat((query[:, :, :length], _rotate(query[:, :, length:], cosine, sine)), 2)
        key = torch.cat((key[:, :, :length], _rotate(key[:, :, length:], cosine, sine)), 2)
        out = _attend(query, key, value, bias)
        return x + self.linear2(torch.cat((out, F.gelu(hidden, approximate="tanh")), -1)) * gate


class FinalLayer(nn.Module):
    """Tokens to 2x2 latent patches."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, 4 * LATENT_CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 2 * HIDDEN))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vector)[:, None].chunk(2, -1)
        return self.linear(_normalise(x) * (1 + scale) + shift)


class Flux(nn.Module):
    """The velocity field of krea-mini."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.img_in = nn.Linear(4 * LATENT_CHANNELS, HIDDEN)
        self.time_in = Embedder(256)
        self.vector_in = Embedder(POOLED)
        self.guidance_in = Embedder(256)
        self.txt_in = nn.Linear(CONTEXT, HIDDEN)
        self.double_blocks = nn.ModuleList(DoubleBlock() for _ in range(DOUBLE_BLOCKS))
        self.single_blocks = nn.ModuleList(SingleBlock() for _ in range(SINGLE_BLOCKS))
        self.final_layer = FinalLayer()
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                into_stream = any(part in name for part in ("proj", "linear2", "mlp.2"))
                gain = 0.5 if into_stream else 1.0
                weight.normal_(0, gain / math.sqrt(weight.shape[1]), generator=generator)
            elif not name.endswith("scale"):
                weight.zero_()
        for module in self.modules():
            if isinstance(module, Modulation):
                module.lin.weight.normal_(0, 0.02, generator=generator)
                gates = (2, 5) if module.parts == 6 else (2,)
                for gate in gates:
                    module.lin.bias[gate * HIDDEN : (gate + 1) * HIDDEN] = 0.4
        self.final_layer.linear.weight.zero_()
        self.final_layer.adaLN_modulation[1].weight.normal_(0, 0.02, generator=generator)
        self.guidance_in.out_layer.weight.zero_()

    def block_matrices(self) -> list[nn.Parameter]:
        """The blocks' matrices, modulation apart: what Muon trains."""
        return [
            weight
            for name, weight in self.named_parameters()
            if weight.ndim == 2 and "_blocks" in name and "mod" not in name
        ]

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        text: Tensor,
        pooled: Tensor,
        padding: Tensor,
        guidance: Tensor | None = None,
        references: Tensor | None = None,
        reference_bias: float = 0.0,
    ) -> Tensor:
        """The velocity noise - picture.

        x: Bx16xhxw noisy latent; sigma: B in 0..1; text: BxLx64, its last token standing for `padding` (B) alike
        ones; pooled: Bx32; guidance: B, or None for the model before guidance distillation; references: BxNx64
        tokens of reference pictures, each with `reference_bias` on its attention logit.
        """
        batch, channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        tokens = x.view(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        image = self.img_in(tokens.reshape(batch, rows * columns, 4 * channels))
        vector = self.time_in(sinusoid(sigma)) + self.vector_in(pooled)
        if guidance is not None:
            vector = vector + self.guidance_in(sinusoid(guidance))
        last = text.shape[1] - 1
        if references is not None:
            text = torch.cat((text, references.to(text.dtype)), 1)
        text = self.txt_in(text)
        length = text.shape[1]
        cosine, sine = rotation(rows, columns)
        bias = torch.zeros(batch, 1, 1, length + rows * columns)
        bias[..., last] = padding.log()[:, None, None]
        bias[..., last + 1 : length] = reference_bias
        for block in self.double_blocks:
            image, text = block(image, text, vector, cosine, sine, bias)
        stream = torch.cat((text, image), 1)
        for block in self.single_blocks:
            stream = block(stream, vector, length, cosine, sine, bias)
        out = self.final_layer(stream[:, length:], vector)
        return out.view(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def export(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Training weights -> ComfyUI's: query and key rows from two halves to interleaved rotary pairs."""
    order = torch.stack([torch.arange(HEAD // 2), torch.arange(HEAD // 2) + HEAD // 2], 1).flatten()
    weights = {}
    for name, value in state.items():
        value = value.detach().clone().float()
        if "qkv" in name or "linear1" in name:
            for start in range(0, 2 * HIDDEN, HEAD):
                value[start : start + HEAD] = value[start : start + HEAD][order]
        elif name.endswith("norm.scale"):
            value = value[order]
        weights[name] = value
    return weights
