"""The schedule against an independent reference: diffusers' own scheduler and the published formula."""

import math

import numpy as np
import pytest
import torch

from krea.aspect_ratio import PRESETS
from krea.schedule import flow_sigmas, shift_mu, time_at_sigma, token_count

SIZES = sorted({(s.width, s.height) for preset in PRESETS.values() for s in preset.sizes.values()})
UPSCALED = [(4 * w, 4 * h) for w, h in SIZES]


def diffusers_sigmas(steps: int, mu: float) -> torch.Tensor:
    """What diffusers' FluxPipeline passes through (pipeline_flux.py, retrieve_timesteps with mu)."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler.sigmas


@pytest.mark.parametrize("size", SIZES + UPSCALED)
@pytest.mark.parametrize("steps", [15, 28, 50])
def test_sigmas_are_those_of_diffusers(size, steps):
    mu = shift_mu(token_count(size[1] // 8, size[0] // 8))
    assert torch.allclose(flow_sigmas(steps, mu), diffusers_sigmas(steps, mu), rtol=0, atol=1e-6)


def test_mu_is_the_trained_line_up_to_4096_tokens():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (1, 256, 2304, 4015, 4056, 4096):
        assert shift_mu(tokens) == pytest.approx(calculate_shift(tokens), abs=1e-12)


def test_mu_is_capped_above_4096_tokens():
    assert math.exp(shift_mu(9216)) == pytest.approx(4.737, abs=1e-3)  # 1536 x 1536 px
    assert math.exp(shift_mu(65536)) == pytest.approx(12.633, abs=1e-3)  # 4096 x 4096 px
    assert shift_mu(4097) - shift_mu(4096) < 2e-4  # no jump


def test_odd_latents_round_up_to_whole_tokens():
    assert token_count(33, 20) == 17 * 10


@pytest.mark.parametrize("mu", [0.3, 0.5, 1.15, 2.4])
@pytest.mark.parametrize("start", [0.01, 0.3, 0.6, 0.999])
def test_a_partial_schedule_starts_at_its_sigma_and_takes_every_step(mu, start):
    sigmas = flow_sigmas(20, mu, start)
    assert len(sigmas) == 21
    assert sigmas[0].item() == pytest.approx(start, rel=1e-7)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    # Evenly spaced in unshifted time, as the whole schedule is.
    times = torch.tensor([time_at_sigma(s.item(), mu) for s in sigmas])
    assert torch.allclose(times.diff(), times.diff().mean(), atol=1e-6)


@pytest.mark.parametrize("start", [0.0, -0.5, 1.01, math.nan])
def test_a_start_sigma_outside_the_schedule_is_refused(start):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        flow_sigmas(28, 1.15, start)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        flow_sigmas(0, 1.15)
