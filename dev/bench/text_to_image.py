"""The bundled text-to-image workflow against the same job on ComfyUI's own nodes, in one server, turn by turn."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dev import small_model
from dev.client import Graph, images_of
from dev.host import ComfyHost
from krea import recipe
from krea.schedule import flow_sigmas, shift_mu, token_count

from .memory import forget_peak_memory, peak_memory

PROMPT = "picture {}: a red circle on a blue background"
SIDE = 256


@dataclass(frozen=True)
class Run:
    """One workflow run: its time in the server in s, its pixels, and what the process took for it (0 if unknown)."""

    seconds: float
    cpu_seconds: float
    peak_memory: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Runs of both sides on the same jobs, in the same order."""

    ours: list[Run]
    core: list[Run]

    @property
    def identical(self) -> bool:
        return all(np.array_equal(a.pixels, b.pixels) for a, b in zip(self.ours, self.core, strict=True))

    def report(self) -> str:
        return "\n".join(
            [
                f"text to image, {recipe.STEPS.default} steps at {SIDE}x{SIDE}, {len(self.ours)} pictures a side:",
                self._figure("time", "s", lambda run: run.seconds),
                self._figure("CPU time", "s", lambda run: run.cpu_seconds),
                self._figure("memory", "GB", lambda run: run.peak_memory / 1e9),
                f"  pictures identical: {'yes' if self.identical else 'NO'}",
            ]
        )

    def _figure(self, name: str, unit: str, figure: Callable[[Run], float]) -> str:
        """Each side's median, and the ratio between the two runs of a job: its median, its quartiles for its noise."""
        ours, core = ([figure(run) for run in runs] for runs in (self.ours, self.core))
        if not all(ours + core):
            return f"  {name:<9} not measured: this system does not tell"
        low, middle, high = np.quantile(np.divide(ours, core), (0.25, 0.5, 0.75))
        return (
            f"  {name:<9} {np.median(ours):.3f} {unit}, ComfyUI's own nodes {np.median(core):.3f} {unit}: "
            f"ratio {middle:.3f}, quartiles {low:.3f} to {high:.3f} (bound 1.02)"
        )


def compare(host: ComfyHost, pairs: int) -> Comparison:
    """Make `pairs` pictures with each side, alternating which goes first; one unmeasured picture of each before."""
    ours, core = [], []
    for number in range(pairs + 1):
        sides = [(ours, _krea_graph(number)), (core, _core_graph(number))]
        for runs, graph in sides if number % 2 else reversed(sides):
            runs.append(timed(host, graph))
    return Comparison(ours[1:], core[1:])


def _krea_graph(number: int) -> Graph:
    graph = small_model.workflow("text_to_image")
    for node in graph.values():
        if node["class_type"] == "FluxKreaPrompt":
            node["inputs"] |= {"prompt": PROMPT.format(number), "texture_enhancement": False}
        if node["class_type"] == "FluxKreaSampler":
            node["inputs"] |= {"seed": number}
    return graph


def _core_graph(number: int) -> Graph:
    """The same words, tokens, sigmas, guidance, steps and seed on ComfyUI's nodes.

    The weights come from Krea Model Loader on both sides: ComfyUI's own loaders cannot load encoders this small.
    Its KSampler takes sigmas from a table of 10,000 entries, so the exact ones are given by ManualSigmas.
    """
    mu = shift_mu(token_count(SIDE // 8, SIDE // 8))
    sigmas = ", ".join(f"{sigma:.12f}" for sigma in flow_sigmas(recipe.STEPS.default, mu).tolist())
    return {
        "1": _node("FluxKreaModelLoader", **small_model.INPUTS["FluxKreaModelLoader"]),
        "2": _node("T5TokenizerOptions", clip=["1", 1], min_padding=0, min_length=recipe.T5_TOKENS),
        "3": _node("CLIPTextEncode", clip=["2", 0], text=PROMPT.format(number)),
        "4": _node("CLIPTextEncode", clip=["2", 0], text=""),
        "5": _node("FluxGuidance", conditioning=["3", 0], guidance=recipe.GUIDANCE.default),
        "6": _node("FluxGuidance", conditioning=["4", 0], guidance=recipe.GUIDANCE.default),
        "7": _node("ModelSamplingFlux", model=["1", 0], max_shift=1.15, base_shift=0.5, width=SIDE, height=SIDE),
        "8": _node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1),
        "9": _node("KSamplerSelect", sampler_name=recipe.SAMPLER),
        "10": _node("ManualSigmas", sigmas=sigmas),
        "11": _node("CFGGuider", model=["7", 0], positive=["5", 0], negative=["6", 0], cfg=1.0),
        "12": _node("RandomNoise", noise_seed=number),
        "13": _node(
            "SamplerCustomAdvanced",
            noise=["12", 0],
            guider=["11", 0],
            sampler=["9", 0],
            sigmas=["10", 0],
            latent_image=["8", 0],
        ),
        "14": _node("VAEDecode", samples=["13", 0], vae=["1", 2]),
        # The same ending on both sides: what the content filter costs has a benchmark of its own.
        "15": _node("FluxKreaContentFilterLoader"),
        "16": _node("FluxKreaSaveImage", filter=["15", 0], images=["14", 0], filename_prefix="core"),
    }


def _node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def timed(host: ComfyHost, graph: Graph) -> Run:
    """Run a graph that saves one picture."""
    pid = host.process.pid
    forget_peak_memory(pid)
    cpu_before = _cpu_seconds(pid)
    record = host.run(graph)
    cpu_seconds = _cpu_seconds(pid) - cpu_before
    memory = peak_memory(pid)
    times = {kind: data["timestamp"] for kind, data in record["status"]["messages"]}
    picture = Image.open(io.BytesIO(host.view(images_of(record)[0])))
    seconds = (times["execution_success"] - times["execution_start"]) / 1000
    return Run(seconds, cpu_seconds, memory, np.asarray(picture))


def _cpu_seconds(pid: int) -> float:
    """What all threads of a process have computed so far; unlike time, hardly touched by what else the machine does."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0
    # Linux: man 5 proc. utime and stime are fields 14 and 15; the second is a name in brackets that may hold spaces.
    ticks = stat.read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
