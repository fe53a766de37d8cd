"""What three style references cost.

At the widths of FLUX.1, in this process, beside ComfyUI's own Redux nodes; and with the small model through the shipped
workflows, where ComfyUI's own nodes cannot load encoders this small.
"""

import asyncio
import functools
import sys
import time
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from PIL import Image

from dev import small_model
from dev.client import Graph
from dev.environment import ROOT, comfyui_root
from dev.host import ComfyHost
from krea.recipe import REFERENCES, STEPS, STYLE_DETAIL, STYLE_STRENGTH, T5_TOKENS
from krea.style import key_biases

from .memory import forget_peak_memory, peak_memory
from .text_to_image import timed

LATENT_SIDE, REDUX_TOKENS = 128, 729  # a picture of 1024x1024 px has 4096 image tokens
IMAGE_TOKENS = (LATENT_SIDE // 2) ** 2
DETAIL_TOKENS = int(STYLE_DETAIL.default) ** 2


@dataclass(frozen=True)
class Case:
    """Model and conditioning of a sampling run; both as ComfyUI's sampler takes them."""

    name: str
    model: object
    conditioning: list


def report(rounds: int = 2) -> str:
    """CPU time and peak memory of a step through one double and one single block of FLUX.1's width."""
    cases = _cases()
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    memory: dict[str, int] = {}
    _sample(cases[0])
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):  # so that a drift of the machine cancels out
            forget_peak_memory()
            before, started = peak_memory(), time.process_time()
            _sample(case)
            seconds[case.name].append(time.process_time() - started)
            memory[case.name] = max(memory.get(case.name, 0), peak_memory() - before)
    none = cases[0].name
    lines = [f"three style references, one double and one single block of width 3072, {rounds} rounds, CPU time:"]
    for name, times in seconds.items():
        ratio = np.median(np.divide(times, seconds[none]))
        more = (memory[name] - memory[none]) / 1e6
        lines.append(f"  {name:<44} {np.median(times):6.2f} s  ratio {ratio:.3f}  peak memory {more:+.0f} MB")
    lines.append(f"  (bound: {cases[1].name} at most 1.10)")
    return "\n".join(lines)


def small_model_report(host: ComfyHost, attention: str, pairs: int = 4) -> str:
    """CPU time of a picture of 1024x1024 px without and with three references, in turn; one of each unmeasured.

    attention: which one the host uses where there is no reference.
    """
    rng = np.random.default_rng(0)
    for number in range(REFERENCES):
        pixels = rng.integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(pixels).save(host.input_dir / f"bench_{number}.png")
    seconds: dict[str, list[float]] = {"text_to_image": [], "style_mix": []}
    for number in range(pairs + 1):
        for workflow, times in seconds.items() if number % 2 else reversed(seconds.items()):
            times.append(timed(host, _graph(workflow, seed=number)).cpu_seconds)
    without, with_references = (np.array(times[1:]) for times in seconds.values())
    return (
        f"three style references, small model at 1024x1024, {int(STEPS.minimum)} steps, {pairs} pictures a side, "
        f"attention {attention}, CPU time: {np.median(with_references):.2f} s, none {np.median(without):.2f} s: "
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
    pack = _pack_in_comfyui()
    model = _blocks()
    generator = torch.Generator().manual_seed(1)
    random = functools.partial(torch.randn, generator=generator)
    text = [[random(1, T5_TOKENS, 4096), {"pooled_output": random(1, 768), "guidance": 4.5}]]

    def ours(tokens: int) -> Case:
        biases = key_biases(STYLE_STRENGTH.default, REDUX_TOKENS, [1.0] * REFERENCES, [tokens] * REFERENCES)
        settings = dict(start_percent=0.0, end_percent=1.0, region=None)
        pictures = [random(tokens, 4096) for _ in biases]
        conditioning = pack.append_tokens(text, pictures, biases, **settings)
        return Case(f"ours, {REFERENCES} x {tokens} tokens", pack.with_references(model), conditioning)

    def core(tokens: int, strength_type: str) -> Case:
        """StyleModelApply, once for each picture; what the vision encoder and the adapter would give is drawn."""
        from nodes import StyleModelApply

        conditioning, adapter = text, SimpleNamespace(get_cond=torch.clone)
        for _ in range(REFERENCES):
            args = (adapter, random(1, tokens, 4096), STYLE_STRENGTH.default, strength_type)
            (conditioning,) = StyleModelApply().apply_stylemodel(conditioning, *args)
        return Case(f"ComfyUI's, {REFERENCES} x {tokens} tokens, {strength_type}", model, conditioning)

    return [
        Case("no reference", model, text),
        ours(DETAIL_TOKENS),
        core(DETAIL_TOKENS, "attn_bias"),
        ours(REDUX_TOKENS),
        core(REDUX_TOKENS, "multiply"),
        core(REDUX_TOKENS, "attn_bias"),
    ]


def _pack_in_comfyui() -> ModuleType:
    """The pack's nodes/reference_attention.py, loaded by ComfyUI in this process, on the CPU."""
    sys.path.insert(0, str(comfyui_root()))  # first, or its `nodes` would be ours
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy import cli_args

    cli_args.args.cpu = True
    cli_args.args.use_pytorch_cross_attention = True  # what ComfyUI takes on a GPU, not on a CPU
    import nodes

    if not asyncio.run(nodes.load_custom_node(str(ROOT))):
        raise RuntimeError("ComfyUI could not load the pack; its log above says why.")
    return sys.modules[str(ROOT).replace(".", "_x_") + ".nodes.reference_attention"]


def _blocks():
    """FLUX.1's transformer with one double and one single block, as ComfyUI's loader gives a model."""
    import comfy.model_patcher
    import comfy.supported_models

    sizes = dict(in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0)
    sizes |= dict(num_heads=24, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], txt_ids_dims=[])
    config = comfy.supported_models.Flux(
        {"image_model": "flux", "guidance_embed": True, "qkv_bias": True, "theta": 10000, "patch_size": 2} | sizes
    )
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.02, generator=generator)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _sample(case: Case) -> None:
    """One step of ComfyUI's sampler."""
    import comfy.sample

    latent = torch.zeros(1, 16, LATENT_SIDE, LATENT_SIDE)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(2))
    comfy.sample.sample(
        case.model, noise, 1, 1.0, "euler", "simple", case.conditioning, case.conditioning, latent, disable_pbar=True
    )
