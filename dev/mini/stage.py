"""One stage of training: optimisers, learning-rate schedule, moving average, checkpoints, a progress line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .muon import Muon

SAVE_EVERY_S = 120
REPORT_EVERY_STEPS = 50
# Each step averages the gradients of so many batches, each computed by a thread of its own with one-threaded
# operations: two cores then wait for each other once a step instead of once an operation.
PARTS = 2
# Only where the processor has instructions for it is bfloat16 faster than float32; elsewhere it is five times slower.
HAS_BFLOAT16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def fast_arithmetic() -> torch.autocast:
    """Context in which matrix products are computed in the faster of bfloat16 and float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=HAS_BFLOAT16)


@dataclass(frozen=True)
class Schedule:
    """Peak learning rates, with linear warm-up, a constant part and a linear decay to zero (a trapezoid).

    `matrix_rate` is Muon's, for hidden weight matrices; `rate` is AdamW's, for everything else.
    """

    steps: int
    rate: float
    matrix_rate: float
    warm_up: int = 50
    decay: float = 0.4
    average: float = 0.998

    def factor(self, step: int) -> float:
        """The share of the peak rate at a step."""
        return min(1.0, (step + 1) / self.warm_up, (self.steps - step) / (self.decay * self.steps))


class Stage:
    """Trains `model` on loss(batch number); the loss must depend on nothing but the weights and that number.

    All state (weights, optimisers, moving average, step) goes to one checkpoint file, replaced atomically, so
    an interrupted stage continues and ends with the weights of an uninterrupted one.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        matrices: list[nn.Parameter],
        loss: Callable[[int], Tensor],
        schedule: Schedule,
        folder: Path,
    ):
        self.name, self.model, self.loss, self.schedule = name, model, loss, schedule
        self.file = folder / f"{name}.pt"
        chosen = {id(parameter) for parameter in matrices}
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        others = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        # The matrices are shared out between the threads, by size: Muon takes its time.
        shares = [sorted(matrices, key=torch.numel)[part::PARTS] for part in range(min(PARTS, len(matrices)))]
        self.optimisers = [
            torch.optim.AdamW(others, lr=schedule.rate, betas=(0.9, 0.97), weight_decay=0.01),
            *(Muon(part, schedule.matrix_rate) for part in shares),
        ]
        self.average = {key: value.clone() for key, value in model.state_dict().items()}
        self.step = 0
        self.compiled = False
        self.threads = ThreadPoolExecutor(PARTS, initializer=torch.set_num_threads, initargs=(1,))

    def load(self) -> None:
        """Continue from the checkpoint, where there is one."""
        if not self.file.exists():
            return
        state = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.average, self.step = state["average"], state["step"]
        print(f"{self.name}: continuing at step {self.step}", flush=True)

    def save(self) -> None:
        """Write the checkpoint; a kill at any moment leaves the old or the new one whole."""
        state = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "step": self.step,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.file)

    def _gradients(self, number: int) -> tuple[float, tuple[Tensor, ...]]:
        loss = self.loss(number)
        # Zeros for what a batch does not use: without references, the networks that look at them.
        return loss.item(), torch.autograd.grad(loss, self.parameters, materialize_grads=True)

    def train_step(self) -> float:
        """One step; returns the loss."""
        first = self.step * PARTS
        # torch.compile in several threads at once can wait for itself forever, so what comes first is not shared out.
        run = self.threads.map if self.compiled else map
        losses, gradients = zip(*run(self._gradients, range(first, first + PARTS)), strict=True)
        self.compiled = True
        for parameter, *parts in zip(self.parameters, *gradients, strict=True):
            parameter.grad = sum(parts) / PARTS
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        factor = self.schedule.factor(self.step)
        rates = (self.schedule.rate, *[self.schedule.matrix_rate] * (len(self.optimisers) - 1))
        for optimiser, rate in zip(self.optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        list(self.threads.map(lambda optimiser: optimiser.step(), self.optimisers))
        self.step += 1
        # A short memory at first, so that the average does not drag the random start along.
        memory = min(self.schedule.average, (1 + self.step) / (10 + self.step))
        weights = self.model.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [weights[key] for key in self.average], 1 - memory)
        return sum(losses) / PARTS

    def run(self) -> dict[str, Tensor]:
        """Train to the last step and return the averaged weights."""
        self.load()
        saved = began = time.monotonic()
        first, losses = self.step, []
        while self.step < self.schedule.steps:
            losses.append(self.train_step())
            now = time.monotonic()
            if self.step % REPORT_EVERY_STEPS == 0 or self.step == self.schedule.steps:
                pace = (now - began) / (self.step - first)
                left = pace * (self.schedule.steps - self.step) / 60
                mean = sum(losses) / len(losses)
                print(
                    f"{self.name}: step {self.step}/{self.schedule.steps}  loss {mean:.4f}  "
                    f"{pace:.2f} s/step  {left:.0f} min left",
                    flush=True,
                )
                losses.clear()
            if now - saved > SAVE_EVERY_S or self.step == self.schedule.steps:
                self.save()
                saved = now
        return self.average
