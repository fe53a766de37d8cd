"""Where in the schedule true CFG acts.

FLUX.1 Krea [dev] is guidance-distilled: its guidance is an input of the network. True CFG is the ordinary
classifier-free guidance on top, v = v_neg + scale * (v_pos - v_neg), with a second forward pass per step.
It need not act on every step: guidance is harmful at high noise and wasted at low noise
(Kynkaanniemi et al. 2024, arXiv 2404.07724).
"""

from typing import NamedTuple

ROUNDING = 1e-6  # a step's float32 sigma against the bound computed in float64


class SigmaInterval(NamedTuple):
    """The sigmas `end` < sigma <= `start`; an `end` of 0 takes in all that follow `start`."""

    start: float
    end: float

    def __contains__(self, sigma: object) -> bool:
        return isinstance(sigma, float) and self.end + ROUNDING < sigma <= self.start + ROUNDING
