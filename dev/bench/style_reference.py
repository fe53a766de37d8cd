"""What three style references cost.

At the widths of FLUX.1, in this process, beside ComfyUI's own Redux nodes; and with the small model through the shipped
workflows, where ComfyUI's own nodes cannot load encoders this small.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from dev import small_model
from dev.client import Graph
from dev.environment import comfyui_root
from dev.host import ComfyHost
from krea.recipe import REFERENCES, STEPS, STYLE_DETAIL
from krea.style import Keys, biased_attention

from .memory import forget_peak_memory, peak_memory
from .text_to_image import timed

TEXT_TOKENS, LATENT_SIDE, REDUX_TOKENS = 512, 128, 729  # a picture of 1024 x 1024 px has 4096 image tokens
DETAIL_TOKENS = int(STYLE_DETAIL.default) ** 2


@dataclass(frozen=True)
class Case:
    """A forward pass: how many tokens stand beside the prompt's, and what is done about attention."""

    name: str
    reference_tokens: int
    options: dict
    mask: torch.Tensor | None = None


def report(rounds: int = 3) -> str:
    """Time and peak memory of one double and one single block of FLUX.1's width, each case in turn."""
    model = _blocks()
    cases = _cases()
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    memory = {}
    for _ in range(rounds + 1):
        for case in cases:
            forget_peak_memory()
            before = peak_memory()
            started = time.perf_counter()
            _forward(model, case)
            seconds[case.name].append(time.perf_counter() - started)
            memory[case.name] = peak_memory() - before
    lines = [f"three style references, one double and one single block of width 3072, {rounds} rounds:"]
    for case in cases:
        times = np.array(seconds[case.name][1:])  # the first round warms up
        ratio = np.median(times / np.array(seconds[cases[0].name][1:]))
        lines.append(
            f"  {case.name:<44} {np.median(times):6.2f} s  ratio {ratio:.3f}  {memory[case.name] / 1e9:.2f} GB more"
        )
    lines.append(f"  (bound: {cases[1].name} at most 1.10)")
    return "\n".join(lines)


def small_model_report(host: ComfyHost, pairs: int = 2) -> str:
    """A picture of 1024x1024 px without and with three references, turn by turn; one of each unmeasured before."""
    rng = np.random.default_rng(0)
    for number in range(REFERENCES):
        pixels = rng.integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(pixels).save(host.input_dir / f"bench_{number}.png")
    seconds: dict[str, list[float]] = {"text_to_image": [], "style_mix": []}
    for number in range(pairs + 1):
        for workflow, times in seconds.items():
            times.append(timed(host, _graph(workflow, seed=number)).seconds)
    without, with_references = (np.array(times[1:]) for times in seconds.values())
    return (
        f"three style references, small model at 1024x1024, {int(STEPS.minimum)} steps, {pairs} pictures a side: "
        f"{np.median(with_references):.2f} s, none {np.median(without):.2f} s: "
        f"ratio {np.median(with_references / without):.3f} (bound 1.10)"
    )


def _graph(workflow: str, seed: int) -> Graph:
    graph = small_model.workflow(workflow)
    pictures = iter(range(REFERENCES))
    changes = {
        "LoadImage": lambda: {"image": f"bench_{next(pictures)}.png"},
        "FluxKreaAspectRatioLatent": lambda: {"aspect_ratio": "1:1", "resolution": "1K"},
        "FluxKreaSampler": lambda: {"seed": seed, "steps": int(STEPS.minimum)},
    }
    for node in graph.values():
        if node["class_type"] in changes:
            node["inputs"] |= changes[node["class_type"]]()
    return graph


def _cases() -> list[Case]:
    few, many = REFERENCES * DETAIL_TOKENS, REFERENCES * REDUX_TOKENS
    total = TEXT_TOKENS + many + (LATENT_SIDE // 2) ** 2
    mask = torch.zeros(1, total, total)
    mask[:, :, TEXT_TOKENS : TEXT_TOKENS + many] = -2.0
    return [
        Case("no reference", 0, {}),
        Case(f"ours, {REFERENCES} x {DETAIL_TOKENS} tokens", few, _weighted(few)),
        Case(f"ours, {REFERENCES} x {REDUX_TOKENS} tokens", many, _weighted(many)),
        Case(f"ComfyUI's, {REFERENCES} x {REDUX_TOKENS} tokens, multiply", many, {}),
        Case(f"ComfyUI's, {REFERENCES} x {REDUX_TOKENS} tokens, attn_bias", many, {}, mask),
    ]


def _weighted(tokens: int) -> dict[str, Callable]:
    keys = [Keys(TEXT_TOKENS, tokens, 1.0)]

    def attention(function, q, k, v, heads, *args, mask=None, **kwargs):
        def attend(rows, mask):
            return function(rows, k, v, heads, *args, mask=mask, **kwargs)

        return biased_attention(attend, q, keys, mask)

    return {"optimized_attention_override": attention}


def _blocks() -> torch.nn.Module:
    sys.path.append(str(comfyui_root()))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy import cli_args

    cli_args.args.cpu = True
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    sizes = dict(in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0)
    sizes |= dict(num_heads=24, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2)
    model = Flux(
        **sizes,
        qkv_bias=True,
        guidance_embed=True,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.02, generator=generator)
    return model


@torch.inference_mode()
def _forward(model: torch.nn.Module, case: Case) -> None:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 16, LATENT_SIDE, LATENT_SIDE, generator=generator)
    context = torch.randn(1, TEXT_TOKENS + case.reference_tokens, 4096, generator=generator)
    model(
        latent,
        torch.tensor([0.7]),
        context,
        torch.randn(1, 768, generator=generator),
        torch.tensor([4.5]),
        transformer_options=case.options,
        attention_mask=case.mask,
    )
