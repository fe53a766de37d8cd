"""The FLUX noise schedule: which sigmas a picture of a given size passes through.

Source: black-forest-labs/flux `src/flux/sampling.py` (`get_schedule`, `time_shift`, `get_lin_function`), which
krea-ai/flux-krea uses unchanged. ComfyUI's own default is one constant shift (mu = 1.15) at every size.
"""

import math

import torch

BASE_TOKENS, BASE_MU = 256, 0.5
MAX_TOKENS, MAX_MU = 4096, 1.15
PATCH = 2  # latent pixels per side that become one token


def token_count(height: int, width: int) -> int:
    """Image tokens of a latent of `height` x `width` (latent pixels, 8 px each); odd sides are padded."""
    return math.ceil(height / PATCH) * math.ceil(width / PATCH)


def shift_mu(tokens: int) -> float:
    """The time shift mu for a number of image tokens.

    Linear in tokens through (256, 0.5) and (4096, 1.15), as FLUX was trained. Beyond 4096 tokens the line
    grows without bound (mu 11.5 at 4096x4096 px, where every sigma but the last is 1), so from there
    e^mu grows with the square root of the tokens (resolution-dependent shift of Stable Diffusion 3,
    Esser et al. 2024, arXiv 2403.03206, section 5.3.2), continuous at 4096.
    """
    if tokens <= MAX_TOKENS:
        return BASE_MU + (MAX_MU - BASE_MU) * (tokens - BASE_TOKENS) / (MAX_TOKENS - BASE_TOKENS)
    return MAX_MU + 0.5 * math.log(tokens / MAX_TOKENS)


def time_at_sigma(sigma: float, mu: float) -> float:
    """The time t in 0..1 at which the schedule shifted by `mu` passes `sigma` in 0..1 (inverse of the shift)."""
    return 0.0 if sigma <= 0.0 else 1.0 / (1.0 + math.exp(mu) * (1.0 / sigma - 1.0))


def flow_sigmas(steps: int, mu: float, start_sigma: float = 1.0) -> torch.Tensor:
    """The `steps` + 1 sigmas from `start_sigma` down to 0, evenly spaced in unshifted time.

    sigma = e^mu / (e^mu + 1/t - 1) for t = linspace(t_start, 0, steps + 1).

    Args:
        steps: model evaluations of a first-order sampler, at least 1.
        mu: the shift, see `shift_mu`.
        start_sigma: 1 starts from pure noise; less keeps that much of an input picture (image to image).

    Returns:
        float32 tensor of shape (steps + 1,), strictly falling, last value 0.

    Raises:
        ValueError: when `steps` is below 1 or `start_sigma` is outside 0 < sigma <= 1.
    """
    if steps < 1:
        raise ValueError(f"The schedule needs at least 1 step, got {steps}.")
    if not 0.0 < start_sigma <= 1.0:
        raise ValueError(f"The start sigma must be above 0 and at most 1 (1 = pure noise), got {start_sigma}.")
    t = torch.linspace(time_at_sigma(start_sigma, mu), 0.0, steps + 1, dtype=torch.float64)
    shift = math.exp(mu)
    sigmas = shift * t / (shift * t + 1.0 - t)  # the formula above times t / t: finite at t = 0
    sigmas[0] = start_sigma
    return sigmas.float()
