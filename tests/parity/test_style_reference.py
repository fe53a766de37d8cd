"""Krea Style Reference against ComfyUI's Redux, against dense attention masks, and its promises about repeated work."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dev import small_model

from .conftest import execute

TRAINED = 32, 32


@pytest.fixture(scope="module")
def style_model(comfy, style_files):
    """The small style model through Krea Style Model Loader."""
    import folder_paths

    for folder, file in style_files:
        folder_paths.add_model_folder_path(folder, str(file.parent))
    names = {
        input_id: file.name for input_id, (_, file) in zip(("vision_encoder", "adapter"), style_files, strict=True)
    }
    (model,) = execute(comfy, "FluxKreaStyleModelLoader", **names).args
    return model


@pytest.fixture(scope="module")
def prompt(encode):
    positive, negative = encode("a red circle on a white background", "a yellow star")
    return SimpleNamespace(positive=positive, negative=negative)


@pytest.fixture(scope="module")
def pictures():
    """Three square pictures with nothing in common."""
    generator = torch.Generator().manual_seed(4)
    return [torch.rand(1, 84, 84, 3, generator=generator) ** power for power in (0.4, 1, 3)]


@pytest.fixture(scope="module")
def refer(comfy, loaded, prompt, style_model):
    """(model, conditioning) with pictures beside the prompt."""

    def run(*pictures, model=None, conditioning=None, style_model=style_model, **settings):
        sockets = {f"picture_{number}": picture for number, picture in enumerate(pictures, 1)}
        out = execute(
            comfy,
            "FluxKreaStyleReference",
            model=model or loaded.model,
            conditioning=conditioning or prompt.positive,
            style_model=style_model,
            pictures=sockets,
            **settings,
        )
        return out.args

    return run


def empty(batch=1, height=16, width=24):
    return torch.zeros(batch, 16, height, width)


def error(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


def with_dense_mask(conditioning, bias, height=16, width=24):
    """A conditioning whose attention mask over all tokens is given as it is; `bias` takes the number of tokens."""
    ((text, values),) = conditioning
    tokens = text.shape[1] + height // 2 * (width // 2)
    values = {name: value for name, value in values.items() if name != "model_conds"}
    shape = (height // 2, width // 2)
    return [[text, values | {"attention_mask": bias(tokens)[None], "attention_mask_img_shape": shape}]]


def test_one_whole_reference_at_full_strength_is_redux_of_diffusers(
    comfy, loaded, refer, sample, style_files, siglip_config, encode
):
    from tests.parity.reference import flux_pipeline, redux_pipeline

    folder, text = small_model.FOLDER, "a red circle above a yellow star on a blue background"
    flux = flux_pipeline(folder / small_model.FLUX, folder / small_model.CLIP_L, folder / small_model.T5, comfy.root)
    (_, siglip), (_, redux) = style_files
    prior = redux_pipeline(siglip, redux, siglip_config, flux)
    pixels = np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)
    theirs = flux(
        **prior(Image.fromarray(pixels), prompt=text),
        guidance_scale=4.5,
        num_inference_steps=28,
        width=256,
        height=144,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    theirs = flux._unpack_latents(theirs, 144, 256, flux.vae_scale_factor)

    positive, _ = encode(text)
    picture = torch.from_numpy(pixels)[None].float() / 255
    model, conditioning = refer(picture, conditioning=positive, strength=1.0, use_as="image prompt")
    ours = sample(empty(height=18, width=32), conditioning, model=model, seed=5)
    assert error(loaded.model.model.process_latent_in(ours), theirs) < 1e-3


def test_one_whole_reference_at_full_strength_is_core_redux_bit_for_bit(
    comfy, refer, sample, prompt, style_model, pictures
):
    from nodes import CLIPVisionEncode, StyleModelApply

    picture = torch.rand(1, 60, 100, 3)
    for fit, crop in (("crop", "center"), ("squash", "none")):
        model, conditioning = refer(picture, strength=1.0, use_as="image prompt", fit=fit)
        with torch.inference_mode():
            (seen,) = CLIPVisionEncode().encode(style_model.vision, picture, crop)
            (core,) = StyleModelApply().apply_stylemodel(prompt.positive, style_model.adapter, seen, 1.0, "multiply")
        assert torch.equal(conditioning[0][0], core[0][0])
        assert torch.equal(sample(empty(), conditioning, model=model), sample(empty(), core))


def test_nothing_is_no_reference(refer, loaded, prompt, pictures):
    for settings in ({"strength": 0.0}, {"weight_1": 0.0}):
        model, conditioning = refer(pictures[0], **settings)
        assert model is loaded.model and conditioning is prompt.positive


def test_a_picture_of_weight_0_is_left_out(refer, pictures):
    _, with_it = refer(*pictures[:2], weight_1=0.8, weight_2=0.0)
    _, without = refer(pictures[0], weight_1=0.3)
    assert torch.equal(with_it[0][0], without[0][0])


def test_two_copies_at_half_weight_are_one(refer, sample, pictures):
    model, once = refer(pictures[0], weight_1=1.0)
    _, twice = refer(pictures[0], pictures[0], weight_1=0.5, weight_2=0.5)
    assert error(sample(empty(), twice, model=model), sample(empty(), once, model=model)) < 1e-3


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
def test_weights_are_those_of_a_dense_mask(refer, sample, prompt, pictures, batch, true_cfg):
    """The whole way through every block, with a negative prompt of another length."""
    model, conditioning = refer(
        *pictures, weight_1=1.0, weight_2=0.6, weight_3=0.1, strength=0.6, use_as="image prompt"
    )
    mass = (10 ** (1.5 * 0.6) - 1) / (10**1.5 - 1) * 36
    start = prompt.positive[0][0].shape[1]

    def dense(tokens):
        bias = torch.zeros(tokens, tokens)
        for number, weight in enumerate((1.0, 0.6, 0.1)):
            bias[:, start + 36 * number :][:, :36] = math.log(mass * weight / 1.7 / 36)
        return bias

    settings = dict(negative=prompt.negative, true_cfg=true_cfg, seed=5)
    expected = sample(empty(batch), with_dense_mask(conditioning, dense), **settings)
    assert error(sample(empty(batch), conditioning, model=model, **settings), expected) < 1e-3
    assert error(sample(empty(batch), conditioning, **settings), expected) > 1e-2, "the bias did nothing"


def test_a_region_is_that_of_a_dense_mask(refer, sample, prompt, pictures):
    region = torch.zeros(1, 32, 48)
    region[:, :, 24:] = 1.0
    region[:, 8:16] = 0.4
    model, conditioning = refer(pictures[0], strength=0.8, region=region)
    start = prompt.positive[0][0].shape[1]
    share = torch.nn.functional.avg_pool2d(region, 4).flatten()

    def dense(tokens):
        bias = torch.zeros(tokens, tokens)
        count = conditioning[0][0].shape[1] - start
        mass = (10 ** (1.5 * 0.8) - 1) / (10**1.5 - 1) * 36
        bias[:, start : start + count] = math.log(mass / count)
        bias[start + count :, start : start + count] += share.log()[:, None]
        return bias

    result = sample(empty(), conditioning, model=model, seed=5)
    assert error(result, sample(empty(), with_dense_mask(conditioning, dense), seed=5)) < 1e-3


def test_a_region_lies_in_the_whole_result_also_where_an_area_is_drawn(refer, sample, pictures):
    """The prompt acts on the left half; a region that is all of it changes nothing, one beside it does."""
    from nodes import ConditioningSetArea

    left, right = torch.zeros(1, 32, 48), torch.zeros(1, 32, 48)
    left[:, :, :24], right[:, :, 24:] = 1.0, 1.0

    def drawn(region):
        model, conditioning = refer(pictures[0], strength=0.8, region=region)
        (conditioning,) = ConditioningSetArea().append(conditioning, 96, 128, 0, 0, 1.0)
        return sample(empty(), conditioning, model=model, seed=5, steps=15)

    everywhere = drawn(None)
    assert error(drawn(left), everywhere) < 1e-5
    assert error(drawn(right), everywhere) > 1e-2


def test_a_region_and_reference_latents_get_along(refer, sample, pictures):
    import node_helpers

    latent = torch.randn(1, 16, 8, 10, generator=torch.Generator().manual_seed(3))

    def drawn(region):
        model, conditioning = refer(pictures[0], strength=0.8, region=region)
        conditioning = node_helpers.conditioning_set_values(conditioning, {"reference_latents": [latent]})
        return sample(empty(), conditioning, model=model, seed=5, steps=15)

    assert error(drawn(torch.ones(1, 4, 4)), drawn(None)) < 1e-5


def test_the_bias_stays_with_its_tokens_where_another_patch_puts_some_before_the_text(refer, sample, pictures):
    biases = []

    def spy(function, *args, mask=None, **kwargs):
        biases.append(mask)
        return function(*args, mask=mask, **kwargs)

    def prepend(args):
        text = args["txt"]
        args["txt"] = torch.cat((text[:, :7], text), 1)
        args["txt_ids"] = torch.cat((args["txt_ids"][:, :7], args["txt_ids"]), 1)
        return args

    model, conditioning = refer(pictures[0], strength=0.5, use_as="image prompt")
    model = model.clone()
    model.set_model_patch(prepend, "post_input")
    model.model_options["transformer_options"]["optimized_attention_override"] = spy
    sample(empty(), conditioning, model=model, steps=15)
    (reference,) = conditioning[0][1]["model_conds"]["flux_krea_references"].cond
    for mask in biases:
        (places,) = mask.flatten().nonzero(as_tuple=True)
        assert places.tolist() == list(range(7 + reference.start, 7 + reference.start + reference.count))
    assert len(biases) >= 15


def test_another_attention_than_the_models_own_is_left_to_who_overrides_it(refer, sample, pictures):
    from comfy.ldm.modules.attention import optimized_attention

    seen = []

    def spy(function, q, k, *args, mask=None, **kwargs):
        seen.append((q.shape[1:], k.shape[1:], mask))
        return function(q, k, *args, mask=mask, **kwargs)

    def look_elsewhere(args):
        few, more = args["txt"][:, :3], args["txt"][:, :5]
        optimized_attention(few, more, more, 1, transformer_options=args["transformer_options"])
        return args

    model, conditioning = refer(pictures[0], strength=0.5)
    model = model.clone()
    model.set_model_patch(look_elsewhere, "post_input")
    model.model_options["transformer_options"]["optimized_attention_override"] = spy
    sample(empty(), conditioning, model=model, steps=15)
    width = 128
    assert [mask for *shapes, mask in seen if shapes == [(3, width), (5, width)]] == [None] * 15


def test_controlnets_keep_the_text_alone(refer, prompt, pictures):
    model, first = refer(pictures[0])
    _, second = refer(pictures[1], model=model, conditioning=first)
    for conditioning in (first, second):
        assert torch.equal(conditioning[0][1]["cross_attn_controlnet"], prompt.positive[0][0])
    assert "cross_attn_controlnet" not in prompt.positive[0][1]


def test_nodes_chain_with_each_other_and_with_core_redux(refer, sample, prompt, style_model, pictures):
    """Ours, then core's with a strength of its own, then ours again."""
    from nodes import CLIPVisionEncode, StyleModelApply

    model, first = refer(pictures[0], strength=0.4, use_as="image prompt")
    with torch.inference_mode():
        (seen,) = CLIPVisionEncode().encode(style_model.vision, pictures[1], "none")
        (middle,) = StyleModelApply().apply_stylemodel(first, style_model.adapter, seen, 1.0, "multiply")
    model, last = refer(pictures[2], model=model, conditioning=middle, strength=0.7, use_as="image prompt")
    start = prompt.positive[0][0].shape[1]

    def dense(tokens):
        bias = torch.zeros(tokens, tokens)
        bias[:, start : start + 36] = math.log((10 ** (1.5 * 0.4) - 1) / (10**1.5 - 1))
        bias[:, start + 72 : start + 108] = math.log((10 ** (1.5 * 0.7) - 1) / (10**1.5 - 1))
        return bias

    expected = sample(empty(), with_dense_mask(last, dense), seed=5)
    assert error(sample(empty(), last, model=model, seed=5), expected) < 1e-3


def test_a_mask_of_core_redux_keeps_its_place(refer, sample, style_model, prompt, pictures):
    """Core's dense mask behind which our tokens come: weights of 1 change nothing but the tokens."""
    from nodes import CLIPVisionEncode, StyleModelApply

    with torch.inference_mode():
        (seen,) = CLIPVisionEncode().encode(style_model.vision, pictures[0], "none")
        (masked,) = StyleModelApply().apply_stylemodel(prompt.positive, style_model.adapter, seen, 0.5, "attn_bias")
        (again,) = CLIPVisionEncode().encode(style_model.vision, pictures[1], "none")
        (core,) = StyleModelApply().apply_stylemodel(masked, style_model.adapter, again, 1.0, "multiply")
    model, ours = refer(pictures[1], conditioning=masked, strength=1.0, use_as="image prompt")
    assert torch.equal(sample(empty(), ours, model=model), sample(empty(), core))


def test_detail_leaves_the_pull_alone(refer, pictures):
    """The same mass on fewer tokens, for a picture whose tokens are all alike."""
    plain = torch.full((1, 84, 84, 3), 0.3)
    masses = []
    for detail in (1, 3, 6):
        _, conditioning = refer(plain, use_as="custom", detail=detail)
        (reference,) = conditioning[0][1]["model_conds"]["flux_krea_references"].cond
        assert reference.count == detail**2
        masses.append(reference.count * math.exp(reference.bias))
    assert masses == pytest.approx([masses[0]] * 3)


def test_it_acts_in_its_part_of_the_schedule_only(refer, sample, prompt, pictures, loaded):
    """Outside, not even the tokens are there."""
    from comfy.patcher_extension import WrappersMP

    lengths = []

    def count(executor, x, timestep, context, *args, **kwargs):
        lengths.append(context.shape[1])
        return executor(x, timestep, context, *args, **kwargs)

    model, conditioning = refer(pictures[0], start_percent=0.25, end_percent=0.5)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", count)
    sample(empty(), conditioning, model=model, steps=20)
    start = prompt.positive[0][0].shape[1]
    assert [length > start for length in lengths] == [5 <= step < 10 for step in range(20)]


def test_it_works_with_comfyuis_own_sampler(refer, loaded, prompt, pictures):
    import nodes

    model, conditioning = refer(pictures[0], strength=0.7)
    with torch.inference_mode():
        results = [
            nodes.common_ksampler(m, 3, 15, 1.0, "euler", "simple", c, prompt.negative, {"samples": empty()})[0][
                "samples"
            ]
            for m, c in ((model, conditioning), (model, prompt.positive), (loaded.model, prompt.positive))
        ]
    assert not torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2]), "the patched model without a reference is another one"


def test_a_lora_may_come_before_or_after(refer, sample, loaded, pictures):
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    change = torch.randn(loaded.model.model.state_dict()[key].shape, generator=torch.Generator().manual_seed(2)) * 0.05

    def with_lora(model):
        model = model.clone()
        assert model.add_patches({key: ("diff", (change,))}, 1.0)
        return model

    plain, conditioning = refer(pictures[0], strength=1.0)
    before, _ = refer(pictures[0], strength=1.0, model=with_lora(loaded.model))
    results = [sample(empty(), conditioning, model=model) for model in (before, with_lora(plain), plain)]
    assert torch.equal(results[0], results[1])
    assert error(results[0], results[2]) > 1e-3


def test_a_picture_is_looked_at_once(refer, style_model, pictures, monkeypatch):
    looks = []
    encode = style_model.vision.encode_image
    monkeypatch.setattr(style_model.vision, "encode_image", lambda *a, **k: looks.append(1) or encode(*a, **k))
    picture = torch.rand(1, 50, 50, 3)
    for settings in ({}, {"weight_1": 0.2}, {"strength": 0.9}, {"use_as": "image prompt"}, {"start_percent": 0.3}):
        refer(picture, pictures[0], **settings)
        refer(picture.clone(), **settings)
    assert len(looks) <= 2
    refer(picture + 0.001)
    assert len(looks) <= 3


def test_padding_and_masks_take_their_tokens_away(refer, prompt):
    text = prompt.positive[0][0].shape[1]

    def tokens(picture, **settings):
        return refer(picture, use_as="image prompt", **settings)[1][0][0].shape[1] - text

    wide = torch.rand(1, 28, 84, 3)
    assert tokens(wide) == 12
    assert tokens(wide, fit="crop") == tokens(wide, fit="squash") == 36
    mask = torch.zeros(1, 28, 84)
    mask[..., :42] = 1.0
    assert tokens(wide, picture_mask=mask) == 6
    assert tokens(wide, picture_mask=mask, fit="squash") == 18
    alpha = torch.cat((torch.rand(1, 84, 84, 3), torch.zeros(1, 84, 84, 1)), -1)
    alpha[:, :28, :, 3] = 1.0
    assert tokens(alpha) == 12


@pytest.mark.parametrize("size", [(1, 1), (100, 8000), (8000, 100), (5, 7)])
@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_any_size_of_picture_works(refer, size, fit):
    _, conditioning = refer(torch.rand(1, *size, 3), fit=fit)
    assert torch.isfinite(conditioning[0][0]).all()


def test_inputs_are_untouched(refer, prompt, pictures, loaded):
    before = [picture.clone() for picture in pictures], prompt.positive[0][0].clone(), dict(prompt.positive[0][1])
    refer(*pictures, region=torch.ones(1, 8, 8), picture_mask=torch.ones(3, 84, 84))
    assert all(map(torch.equal, before[0], pictures))
    assert torch.equal(before[1], prompt.positive[0][0])
    assert before[2].keys() == prompt.positive[0][1].keys()
    assert not loaded.model.wrappers


def left_edge(height, width):
    mask = torch.zeros(1, height, width)
    mask[..., :4] = 1.0
    return mask


@pytest.mark.parametrize(
    "pictures, settings, message",
    [
        ([], {}, "No picture is wired"),
        ([torch.rand(2, 8, 8, 3)], {}, "picture_1 holds a batch of 2 pictures"),
        ([torch.full((1, 8, 8, 3), math.nan)], {}, "picture_1 has values that are no numbers"),
        ([torch.zeros(1, 8, 8, 4)], {}, "picture_1 is fully transparent"),
        ([torch.rand(1, 8, 8, 3)] * 4, {}, "at most 3 pictures"),
        ([torch.rand(1, 8, 8, 3)], {"picture_mask": torch.zeros(1, 8, 8)}, "picture mask for picture_1 is empty"),
        ([torch.rand(1, 8, 8, 3)], {"picture_mask": torch.ones(1, 8, 16)}, "is 16x8, the picture 8x8"),
        ([torch.rand(1, 8, 8, 3)] * 2, {"picture_mask": torch.ones(3, 8, 8)}, "3 picture masks for 2 pictures"),
        ([torch.rand(1, 8, 8, 3)], {"region": torch.zeros(1, 8, 8)}, "region is empty"),
        ([torch.rand(1, 8, 8, 3)], {"start_percent": 0.5, "end_percent": 0.5}, "no step"),
        ([torch.rand(1, 8, 8, 3)], {"conditioning": [[torch.rand(1, 4, 32), {}]]}, "width 32.*gives 64"),
        ([torch.rand(1, 8, 8, 3)], {"conditioning": [[torch.rand(1, 4, n), {}] for n in (64, 32)]}, "width 32.*64"),
        ([torch.rand(1, 8, 8, 2)], {}, "picture_1 is no picture"),
        ([torch.zeros(1, 8, 8, 3, dtype=torch.uint8)], {}, "picture_1 is no picture: .* of torch.uint8"),
        (
            [torch.rand(1, 8, 8, 3)],
            {"picture_mask": torch.full((1, 8, 8), math.nan)},
            "picture_1 has values that are no",
        ),
        (
            [torch.rand(1, 8, 8, 3)],
            {"region": torch.full((1, 8, 8), math.nan)},
            "region has values that are no numbers",
        ),
        ([torch.rand(1, 8, 8, 3)], {"region": torch.ones(2, 8, 8)}, "region is a batch of 2 masks"),
        ([torch.rand(1, 8, 32, 3)], {"picture_mask": left_edge(8, 32), "fit": "crop"}, "Nothing of picture_1 counts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_inputs_are_refused_with_what_to_do(refer, pictures, settings, message):
    with pytest.raises(ValueError, match=message):
        refer(*pictures, **settings)


def test_masks_are_shares_of_any_form_and_half_precision_is_a_picture(refer, pictures):
    region = torch.rand(1, 8, 8)
    (expected,) = refer(pictures[0], region=region)[1][0][1]["model_conds"]["flux_krea_references"].cond
    for form in (region[0], region[None], region * 3):
        (own,) = refer(pictures[0], region=form)[1][0][1]["model_conds"]["flux_krea_references"].cond
        assert torch.equal(own.region, (form.reshape(8, 8)).clamp(0, 1)) and own.bias == expected.bias
    half = refer(pictures[0].half())[1][0][0]
    assert error(half, refer(pictures[0].half().float())[1][0][0]) == 0


def test_a_prompt_is_needed(refer, comfy, loaded, style_model, pictures):
    with pytest.raises(ValueError, match="The conditioning is empty"):
        execute(
            comfy,
            "FluxKreaStyleReference",
            model=loaded.model,
            conditioning=[],
            style_model=style_model,
            pictures={"picture_1": pictures[0]},
        )


@pytest.mark.parametrize("lack", ["vision_model.encoder.layers.1.self_attn.q_proj.weight", "nothing"])
def test_a_damaged_style_model_is_named(comfy, refer, style_files, pictures, tmp_path, lack):
    """A tensor that is missing is seen at loading, values that are no numbers at the first picture."""
    import folder_paths
    from safetensors.torch import load_file, save_file

    (_, siglip), (_, redux) = style_files
    weights = load_file(siglip)
    if lack == "nothing":
        weights["vision_model.post_layernorm.weight"] = torch.full((72,), math.nan)
    else:
        del weights[lack]
    save_file(weights, tmp_path / f"damaged_{lack}.safetensors")
    folder_paths.add_model_folder_path("clip_vision", str(tmp_path))
    with pytest.raises(ValueError, match="damaged.*Download"):
        names = {"vision_encoder": f"damaged_{lack}.safetensors", "adapter": redux.name}
        (model,) = execute(comfy, "FluxKreaStyleModelLoader", **names).args
        refer(pictures[0], style_model=model)


def test_the_vision_encoder_sees_what_transformers_sees(style_model, style_files, siglip_config):
    """SigLIP's tokens as transformers computes them from the same file, in the fp16 that ComfyUI keeps it in."""
    from safetensors.torch import load_file
    from transformers import SiglipVisionModel

    weights = {name: tensor.half().float() for name, tensor in load_file(style_files[0][1]).items()}
    reference = SiglipVisionModel(siglip_config).eval()
    reference.load_state_dict(
        {name: weights[name if name in weights else f"vision_model.{name}"] for name in reference.state_dict()}
    )
    picture = torch.rand(1, 84, 84, 3)
    pixels = ((picture * 255).round() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = style_model.adapter.model(reference(pixels.movedim(-1, 1)).last_hidden_state)
        grid, coverage = style_model.look(picture, None, "pad")
    assert (coverage == 1).all()
    assert error(grid.view(1, 36, 64), expected) < 1e-4
