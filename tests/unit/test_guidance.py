from krea.guidance import SigmaInterval
from krea.schedule import flow_sigmas


def percent_to_sigma(percent: float, shift: float) -> float:
    """ComfyUI's conversion (comfy/model_sampling.py, ModelSamplingFlux) with shift = e^mu."""
    time = 1.0 - percent
    return 0.0 if time <= 0 else shift / (shift + 1 / time - 1)


def steps_inside(start: float, end: float, steps: int = 20, mu: float = 1.15) -> list[int]:
    shift = 2.718281828459045**mu
    interval = SigmaInterval(percent_to_sigma(start, shift), percent_to_sigma(end, shift))
    return [i for i, sigma in enumerate(flow_sigmas(steps, mu)[:-1]) if sigma.item() in interval]


def test_the_whole_schedule_takes_in_every_step():
    assert steps_inside(0.0, 1.0) == list(range(20))


def test_a_part_of_the_schedule_is_that_part_of_the_steps():
    assert steps_inside(0.25, 0.5) == [5, 6, 7, 8, 9]


def test_intervals_that_meet_share_no_step_and_miss_none():
    for cut in (0.1, 0.35, 0.5, 0.85):
        assert steps_inside(0.0, cut) + steps_inside(cut, 1.0) == list(range(20))
