"""Krea Sampler against ComfyUI's own sampling, and its promises about batches, guidance and side effects."""

import sys
from types import SimpleNamespace

import pytest
import torch

SEED = 77
TRAINED = 32, 32  # a latent size that the small model was trained at: elsewhere it amplifies rounding


@pytest.fixture(scope="module")
def prompt(encode):
    positive, negative = encode("a red circle on a white background", "a yellow star")
    return SimpleNamespace(positive=positive, negative=negative)


def empty(batch=1, height=16, width=24):
    return torch.zeros(batch, 16, height, width)


@pytest.fixture(scope="module")
def core(comfy, loaded, prompt):
    """ComfyUI's own sampling with its own nodes' shift, guidance and noise, on given sigmas."""
    import comfy.sample
    import comfy.samplers
    import node_helpers
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    from krea.schedule import flow_sigmas, shift_mu, token_count

    def run(latent, seed=SEED, steps=28, guidance=4.5, cfg=1.0, sampler="euler", start_sigma=1.0, mask=None):
        height, width = latent.shape[-2:]
        mu = shift_mu(token_count(height, width))
        # With both ends of the line at mu, the node's shift is mu at any size.
        model = ModelSamplingFlux().patch(loaded.model, mu, mu, 8 * width, 8 * height)[0]
        values = {"guidance": guidance}
        with torch.inference_mode():
            return comfy.sample.sample_custom(
                model,
                comfy.sample.prepare_noise(latent, seed),
                cfg,
                comfy.samplers.sampler_object(sampler),
                flow_sigmas(steps, mu, start_sigma),
                node_helpers.conditioning_set_values(prompt.positive, values),
                node_helpers.conditioning_set_values(prompt.negative, values),
                latent,
                noise_mask=mask,
                seed=seed,
            )

    return run


@pytest.fixture
def counted(loaded):
    """A clone of the model that counts the pictures that pass through the network, and sees the settings."""
    from comfy.patcher_extension import WrappersMP

    seen = SimpleNamespace(model=loaded.model.clone(), pictures=[], guidance=[])

    def count(executor, x, timestep, context, y, guidance, *args, **kwargs):
        seen.pictures.append(len(x))
        seen.guidance.append(None if guidance is None else guidance.tolist())
        return executor(x, timestep, context, y, guidance, *args, **kwargs)

    seen.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", count)
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance": 7.0, "steps": 15},
        {"cfg": 2.5},
        {"sampler": "dpmpp_2m", "steps": 15},
        {"sampler": "euler_ancestral", "steps": 15},
        {"sampler": "dpmpp_2m_sde", "steps": 15},
        {"sampler": "uni_pc", "steps": 15},
    ],
    ids=str,
)
def test_with_extras_off_the_result_is_comfyuis_bit_for_bit(core, sample, prompt, settings):
    ours = {{"cfg": "true_cfg", "sampler": "sampler_name"}.get(k, k): v for k, v in settings.items()}
    result = sample(empty(), prompt.positive, negative=prompt.negative, seed=SEED, **ours)
    assert torch.equal(result, core(empty(), **settings))


def test_image_to_image_and_mask_are_comfyuis_bit_for_bit(core, sample, prompt):
    picture = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 128, 192)
    mask[..., 64:] = 1.0
    latent = {"samples": picture, "noise_mask": mask}
    result = sample(latent, prompt.positive, seed=SEED, start_sigma=0.7)
    assert torch.equal(result, core(picture, start_sigma=0.7, mask=mask))
    kept = (result - picture)[..., :7].abs().max()
    assert kept < 1e-5, "the part outside the mask changed"


def test_a_low_start_sigma_stays_near_the_input_picture(sample, prompt):
    picture = sample(empty(), prompt.positive, seed=1)
    distances = [
        (sample(picture, prompt.positive, seed=SEED, start_sigma=s) - picture).norm().item() for s in (0.1, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral", "dpmpp_2m_sde", "dpm_adaptive", "ddim"])
def test_an_image_of_a_batch_is_the_image_of_its_own_seed(sample, prompt, sampler_name):
    settings = dict(positive=prompt.positive, steps=15, sampler_name=sampler_name)
    batch = sample(empty(3, *TRAINED), seed=SEED, **settings)
    for index in range(3):
        alone = sample(empty(1, *TRAINED), seed=SEED + index, **settings)
        error = (batch[index] - alone[0]).norm() / alone.norm()
        assert error < 1e-5, f"image {index}: {error:.1e}"
    assert (batch[0] - batch[1]).norm() > 0.1 * batch[0].norm()


def test_an_image_cut_out_of_a_batch_is_made_again(sample, prompt):
    batch = sample(empty(3, *TRAINED), prompt.positive, seed=SEED, steps=15)
    cut = {"samples": empty(1, *TRAINED), "batch_index": [2]}
    again = sample(cut, prompt.positive, seed=SEED, steps=15)
    assert (batch[2] - again[0]).norm() < 1e-5 * again.norm()


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_fewer_masks_than_images_are_repeated_in_turn(sample, prompt, sampler_name):
    """As ComfyUI does it: images 0 and 2 have the first mask, 1 and 3 the second."""
    pictures = torch.randn(4, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    masks = torch.zeros(2, 1, 128, 128)
    masks[0, :, :64], masks[1, :, 64:] = 1.0, 1.0
    latent = {"samples": pictures, "noise_mask": masks}
    changed = (sample(latent, prompt.positive, steps=15, sampler_name=sampler_name) - pictures).abs().amax((1, 3))
    for index in range(4):
        kept, painted = changed[index].split(8) if index % 2 else changed[index].split(8)[::-1]
        assert kept.max() < 1e-5 < 0.1 < painted.max()


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_each_image_of_a_batch_can_have_its_own_prompt(sample, prompt, encode, sampler_name):
    """Together or one by one: images 0 and 2 are made from the first prompt, 1 from the second, as ComfyUI does it."""
    other, _ = encode("a blue star on a white background")
    (text, values), (other_text, other_values) = prompt.positive[0], other[0]
    pooled = torch.cat([values["pooled_output"], other_values["pooled_output"]])
    both = [[torch.cat([text, other_text]), values | {"pooled_output": pooled}]]
    settings = dict(steps=15, sampler_name=sampler_name)
    batch = sample(empty(3, *TRAINED), both, seed=SEED, **settings)
    for index, positive in enumerate([prompt.positive, other, prompt.positive]):
        alone = sample(empty(1, *TRAINED), positive, seed=SEED + index, **settings)
        error = (batch[index] - alone[0]).norm() / alone.norm()
        assert error < 1e-5, f"image {index}: {error:.1e}"


def test_each_image_has_its_own_mask_and_controlnet_picture(comfy):
    """Where images are sampled one by one; ComfyUI shows each what it would be shown in the whole batch."""
    from comfy.controlnet import ControlBase

    class Control(ControlBase):
        def copy(self):
            control = Control()
            self.copy_to(control)
            return control

    sampling = sys.modules[f"{comfy.module.__name__}.nodes.sampling"]
    hints, earlier_hints = torch.rand(3, 3, 8, 8), torch.rand(1, 3, 8, 8)
    control = Control().set_cond_hint(hints).set_previous_controlnet(Control().set_cond_hint(earlier_hints))
    text, mask = torch.rand(1, 4, 8), torch.rand(2, 8, 8)
    values = {"pooled_output": torch.rand(1, 8), "mask": mask, "control": control}
    for index in range(3):
        ((own_text, own),) = sampling.conditioning_of_image([[text, values]], index)
        assert torch.equal(own_text, text) and torch.equal(own["pooled_output"], values["pooled_output"])
        assert torch.equal(own["mask"], mask[index % 2][None])
        assert torch.equal(own["control"].cond_hint_original, hints[index][None])
        assert torch.equal(own["control"].previous_controlnet.cond_hint_original, earlier_hints)
    assert control.cond_hint_original is hints and values["mask"] is mask


def test_guidance_is_the_same_on_both_sides(sample, prompt, counted):
    sample(empty(), prompt.positive, negative=prompt.negative, model=counted.model, guidance=6.0, true_cfg=2.0)
    assert {g for row in counted.guidance for g in row} == {6.0}


def test_guidance_can_be_switched_off(sample, prompt, counted):
    off = sample(empty(), prompt.positive, model=counted.model, guidance_embed=False)
    assert set(counted.guidance) == {None}
    assert not torch.equal(off, sample(empty(), prompt.positive))


def test_a_negative_prompt_costs_nothing_while_true_cfg_is_1(sample, prompt, counted):
    with_negative = sample(empty(), prompt.positive, negative=prompt.negative, model=counted.model)
    assert sum(counted.pictures) == 28
    assert torch.equal(with_negative, sample(empty(), prompt.positive))


def test_a_negative_prompt_for_an_area_costs_nothing_either(sample, prompt, counted):
    import node_helpers

    corner = node_helpers.conditioning_set_values(prompt.negative, {"area": (8, 8, 0, 0), "strength": 1.0})
    with_negative = sample(empty(), prompt.positive, negative=corner, model=counted.model)
    assert sum(counted.pictures) == 28
    assert torch.equal(with_negative, sample(empty(), prompt.positive))


def test_true_cfg_costs_a_second_pass_only_inside_its_interval(sample, prompt, counted):
    sample(
        empty(),
        prompt.positive,
        negative=prompt.negative,
        model=counted.model,
        steps=20,
        true_cfg=2.0,
        true_cfg_start=0.25,
        true_cfg_end=0.5,
    )
    assert sum(counted.pictures) == 20 + 5


def test_percent_to_sigma_agrees_with_the_schedule(sample, prompt, counted):
    """A second conditioning for the first half of the schedule, as ComfyUI's own range node sets it."""
    import node_helpers

    first_half = node_helpers.conditioning_set_values(prompt.negative, {"start_percent": 0.0, "end_percent": 0.49})
    sample(empty(height=40, width=64), prompt.positive + first_half, model=counted.model, steps=20)
    assert sum(counted.pictures) == 20 + 10


def test_inputs_other_models_and_the_global_rng_are_untouched(sample, prompt, loaded):
    latent = {"samples": torch.randn(2, 16, 16, 24), "noise_mask": torch.ones(1, 1, 16, 24), "batch_index": [4, 5]}
    before = {k: v.clone() if torch.is_tensor(v) else list(v) for k, v in latent.items()}
    shift = loaded.model.get_model_object("model_sampling").shift
    state = torch.get_rng_state()
    for sampler_name in ("euler", "ddim", "dpmpp_sde"):
        sample(latent, prompt.positive, negative=prompt.negative, steps=15, true_cfg=1.5, sampler_name=sampler_name)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.model.get_model_object("model_sampling").shift == shift
    assert latent.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(latent[k]), torch.as_tensor(before[k])) for k in latent)
    assert "guidance" not in prompt.positive[0][1]


@pytest.fixture
def progress(comfy):
    """What reaches ComfyUI's progress hook: (step, total, preview)."""
    import comfy.utils
    from comfy.cli_args import LatentPreviewMethod, args

    events, before = [], args.preview_method
    args.preview_method = LatentPreviewMethod.Latent2RGB
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **_: events.append((value, total, preview)))
    yield events
    comfy.utils.set_progress_bar_global_hook(None)
    args.preview_method = before


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_the_preview_shows_every_image_of_the_batch(sample, prompt, progress, sampler_name):
    sample(empty(3), prompt.positive, steps=15, sampler_name=sampler_name)
    values = [value for value, _, _ in progress]
    assert values == sorted(values)
    assert values[-1] == progress[-1][1] == (15 if sampler_name == "euler" else 45)
    sheet = progress[-1][2][1]
    assert sheet.size == (2 * 24, 2 * 16)
    tiles = [sheet.crop((x, y, x + 24, y + 16)).tobytes() for x, y in ((0, 0), (24, 0), (0, 16))]
    assert len(set(tiles)) == 3
    assert not any(sheet.crop((24, 16, 48, 32)).tobytes())  # the empty place of the grid
    last_at_first = progress[0][2][1].crop((0, 16, 24, 32)).tobytes()
    assert any(last_at_first) == (sampler_name == "euler")  # one by one, the third image has not begun


def test_an_interrupt_stops_within_one_step(comfy, sample, prompt, progress):
    import comfy.model_management as management
    import comfy.utils

    def interrupt_at_step_3(value, total, preview, **_):
        progress.append(value)
        if value == 3:
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()

    comfy.utils.set_progress_bar_global_hook(interrupt_at_step_3)
    with pytest.raises(management.InterruptProcessingException):
        sample(empty(2), prompt.positive)
    assert max(progress) <= 4


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"true_cfg": 2.0}, "no negative prompt is wired"),
        ({"sampler_name": "euler_cfg_pp"}, "steers by the negative prompt.*or choose euler"),
        ({"true_cfg": 2.0, "true_cfg_start": 0.6, "true_cfg_end": 0.6, "negative": True}, "none of the 28 steps"),
        ({"true_cfg": 2.0, "true_cfg_start": 0.98, "negative": True}, "none of the 28 steps"),
        ({"start_sigma": 0.6}, "the latent is empty"),
        ({"latent": torch.ones(1, 4, 16, 16)}, r"\(1, 4, 16, 16\).*ae.safetensors"),
        ({"latent": torch.zeros(1, 16, 3, 16, 16)}, r"\(1, 16, 3, 16, 16\)"),
    ],
    ids=["no negative", "CFG++", "empty interval", "last moment", "empty latent", "SD latent", "video latent"],
)
def test_wrong_inputs_are_refused_with_what_to_do(sample, prompt, settings, message):
    settings = dict(settings)
    if settings.pop("negative", False):
        settings["negative"] = prompt.negative
    with pytest.raises(ValueError, match=message):
        sample(settings.pop("latent", empty()), prompt.positive, **settings)


@pytest.mark.parametrize(
    "family, shape",
    [
        ("SDXL", {}),
        ("Flux2", {"image_model": "flux2"}),
        ("Chroma", {"image_model": "chroma"}),
        ("LongCatImage", {"image_model": "flux", "vec_in_dim": None}),
    ],
)
def test_a_model_of_another_family_is_refused_by_name(comfy, sample, prompt, family, shape):
    import comfy.model_base

    model = object.__new__(getattr(comfy.model_base, family))
    model.model_config = SimpleNamespace(unet_config=shape)
    with pytest.raises(ValueError, match=f"wired in is {family}.*flux1-krea-dev"):
        sample(empty(), prompt.positive, model=SimpleNamespace(model=model))
