"""What the benchmark makes of its measurements."""

import os
import sys

import numpy as np
import pytest

from dev.bench.text_to_image import Comparison, Run, _cpu_seconds

PIXELS = np.zeros((1, 1, 3))


def report(core, ours, cpu_seconds=1.0):
    """The report on runs that took these seconds, a side each."""
    sides = ([Run(seconds, cpu_seconds, 10**9, PIXELS) for seconds in side] for side in (ours, core))
    return Comparison(*sides).report()


def test_a_job_that_was_slow_on_both_sides_does_not_touch_the_ratio():
    assert "ratio 1.100, quartiles 1.100 to 1.100" in report([1, 2, 9], [1.1, 2.2, 9.9])


def test_noise_shows_in_the_quartiles():
    assert "ratio 1.000, quartiles 0.900 to 1.200" in report([1] * 5, [0.8, 0.9, 1.0, 1.2, 1.3])


def test_one_pair_is_enough():
    assert "ratio 1.500, quartiles 1.500 to 1.500" in report([2], [3])


def test_what_the_system_does_not_tell_is_said():
    assert "CPU time  not measured" in report([1], [1], cpu_seconds=0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_time_is_the_processs_own():
    times = os.times()
    assert _cpu_seconds(os.getpid()) == pytest.approx(times.user + times.system, abs=0.1)


def test_cpu_time_of_an_unknown_process_is_0():
    assert _cpu_seconds(2**31) == 0
