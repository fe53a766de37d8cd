"""Training of krea-mini: seeded, resumable, and the same function as what ComfyUI loads."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dev import small_model
from dev.environment import comfyui_root
from dev.mini import autoencoder, text, train, weights
from dev.mini.data import Batches
from dev.mini.drawn import Pictures
from dev.mini.pictures import draw, random_scene
from dev.mini.stage import Schedule, Stage
from dev.mini.train import MISPLACED_ABOVE, Model, flow_loss, noised, ragged, start_share
from dev.mini.vision import encoder_view
from krea.model_file.style_set import check_style_set


@pytest.fixture(scope="module")
def comfy():
    """ComfyUI's own modules, on the CPU."""
    sys.path.append(str(comfyui_root()))
    from comfy import cli_args

    cli_args.args.cpu = True
    import comfy.sd
    import comfy.utils

    return comfy


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.bias = nn.Parameter(torch.zeros(4))

    def loss(self, number: int) -> torch.Tensor:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
        return (x @ self.matrix.T + self.bias - x.sum(1, keepdim=True)).square().mean()


def line_stage(folder: Path) -> Stage:
    line = Line()
    schedule = Schedule(steps=30, rate=0.05, matrix_rate=0.05, warm_up=3)
    return Stage("line", line, [line.matrix], line.loss, schedule, folder)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    straight = line_stage(tmp_path / "straight").run()
    first = line_stage(tmp_path / "resumed")
    for _ in range(13):
        first.train_step()
    first.save()
    for _ in range(4):
        first.train_step()
    resumed = line_stage(tmp_path / "resumed").run()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_training_lowers_the_loss(tmp_path):
    before = Line().loss(99).item()
    stage = line_stage(tmp_path)
    stage.run()
    assert stage.model.loss(99).item() < 0.7 * before


def test_the_learning_rate_is_a_trapezoid():
    schedule = Schedule(steps=100, rate=1, matrix_rate=1, warm_up=10, decay=0.4)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:60] == [1] * 51
    assert factors[80] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.03


def test_batches_are_a_function_of_seed_and_number(encoder, captions, tmp_path):
    pictures = Pictures(encoder, 0, 1, tmp_path)
    again = Pictures(encoder, 0, 1, tmp_path)
    model = Model(len(captions.words))
    losses = [
        flow_loss(model, Batches(source, captions, seed, 2)(number)).item()
        for source, seed, number in ((pictures, 0, 3), (again, 0, 3), (pictures, 0, 4), (pictures, 1, 3))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_misplaced_patches_come_from_next_door():
    patches = torch.arange(30.0).view(1, 1, 5, 6).expand(400, 16, 5, 6)
    latent = patches.repeat_interleave(2, 2).repeat_interleave(2, 3)
    result = ragged(latent, torch.Generator().manual_seed(0))
    found = result[:, 0, ::2, ::2]
    assert torch.equal(found.repeat_interleave(2, 1).repeat_interleave(2, 2), result[:, 5])
    rows, columns = found // 6 - patches[:, 0] // 6, found % 6 - patches[:, 0] % 6
    assert rows.abs().max() == columns.abs().max() == 1
    moved = (found != patches[:, 0]).flatten(1).float().mean(1)
    assert 0.4 < (moved > 0).float().mean() < 0.6 and moved.max() < 0.6


def test_the_velocity_leads_to_the_true_picture(encoder, captions, tmp_path):
    batch = Batches(Pictures(encoder, 0, 1, tmp_path), captions, 0, 4)(1)
    noisy, sigma, velocity = noised(batch)
    assert torch.allclose(noisy - sigma.view(-1, 1, 1, 1) * velocity, batch.latent, atol=1e-4)


def test_image_to_image_states_lie_on_the_way_from_the_start_to_the_picture(monkeypatch):
    """The way that Euler steps take under the right velocity, (x - picture) / sigma."""
    monkeypatch.setattr(train, "EDITED_FROM", (0.9, 0.9))
    generator = torch.Generator().manual_seed(0)
    noise, start, picture = torch.randn(3, 16, 4, 4, generator=generator)
    sigmas = torch.linspace(0.9, 0.1, 9)
    shares = start_share(sigmas, generator)
    assert shares[0] == 0  # the picture itself is seen from 0.9 up
    x = 0.9 * noise + 0.1 * start
    for here, there, share in zip(sigmas[:-1], sigmas[1:], shares[1:], strict=True):
        x = x + (there - here) * (x - picture) / here
        seen = picture + share * (start - picture)
        assert torch.allclose(x, there * noise + (1 - there) * seen, atol=1e-5)
    assert shares[1] > 0.4 > 0.02 > shares[-1] > 0
    assert torch.equal(start_share(torch.tensor([0.95, 1.0]), generator), torch.zeros(2))


def test_what_image_to_image_starts_from_is_under_the_noise_and_not_in_the_target(encoder, captions, tmp_path):
    batch = Batches(Pictures(encoder, 0, 1, tmp_path), captions, 0, 40)(2)
    state = batch.generator.get_state()
    plain, sigma, _ = noised(batch)
    batch.generator.set_state(state)
    batch.start = batch.latent + 1
    noisy, again, velocity = noised(batch)
    level = sigma.view(-1, 1, 1, 1)
    assert torch.equal(sigma, again)
    assert torch.allclose(noisy - level * velocity, batch.latent, atol=1e-4)
    share = ((noisy - plain) / (1 - level).clamp(min=1e-6)).flatten(1)
    inside = (sigma > 0.1) & (sigma < 0.79)
    assert inside.any() and (share[inside] > 0).all() and (share[inside] < 1).all()


def test_misplaced_patches_are_seen_only_where_there_is_noise_to_mend_them(encoder, captions, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "sample_sigmas", lambda count, generator: torch.linspace(0.02, 1, count))
    batch = Batches(Pictures(encoder, 0, 1, tmp_path), captions, 0, 80)(0)
    noisy, sigma, velocity = noised(batch)
    level = sigma.view(-1, 1, 1, 1)
    # The velocity is noise - picture, and what is seen amiss divided by the noise level.
    amiss = (velocity + batch.latent).abs().flatten(1).amax(1) > 7
    assert not amiss[sigma <= MISPLACED_ABOVE].any()
    assert (noisy - level * velocity - batch.latent).abs().max() < 1e-4
    assert amiss[(sigma > MISPLACED_ABOVE) & (sigma < 0.6)].any()


def test_the_linear_encoder_is_the_one_in_the_file(comfy, encoder, tmp_path):
    picture = draw(random_scene(random.Random(2), (320, 208)))
    decoder = autoencoder.Decoder(torch.Generator().manual_seed(0))
    decoder.load_state_dict(weights.rounded(decoder.state_dict()))
    weights.write_vae(tmp_path, encoder, decoder.state_dict())
    taesd = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(tmp_path / small_model.VAE))).first_stage_model.float()
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        encoded = (taesd.encode(pixels * 2 - 1) - autoencoder.SHIFT) * autoencoder.SCALE
        latent = torch.from_numpy(encoder(picture))[None]
        decoded = taesd.decode(latent / autoencoder.SCALE + autoencoder.SHIFT) / 2 + 0.5
        expected = decoder(latent)
    assert encoded.shape == latent.shape
    assert (encoded - latent).abs().max() < 0.02
    assert (decoded - expected).abs().max() < 0.02


def test_rounded_weights_are_near_and_have_few_digits():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 0.05
    near = weights.rounded({"weight": values})["weight"]
    assert ((near - values).abs() <= values.abs() * 2.0**-weights.DIGITS).all()
    mantissas, _ = torch.frexp(near)
    assert len((mantissas * 2**weights.DIGITS).unique()) <= 2**weights.DIGITS  # of both signs


def load_clip(comfy, folder: Path):
    files = [comfy.utils.load_torch_file(str(folder / name)) for name in (small_model.CLIP_L, small_model.T5)]
    options = {"model_config": dict(text.CLIP_CONFIG), "t5xxl_model_config": dict(text.T5_CONFIG)}
    return comfy.sd.load_text_encoder_state_dicts(files, clip_type=comfy.sd.CLIPType.FLUX, model_options=options)


def test_the_training_twins_are_what_comfyui_runs(comfy, captions, trained, tmp_path):
    weights.write_clip(tmp_path, captions.bag)
    weights.write_transformer(tmp_path, trained.state_dict(), captions.words, seed=0)
    head, tail = "A photo of a red circle above a blue square", ". The mood is modern and minimal."
    clip = load_clip(comfy, tmp_path)
    tokens = clip.tokenize(head + tail, tokenizer_options={"t5xxl_min_length": text.T5_TOKENS})
    full, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
    ids, padding, expected_pooled = captions.encode([head], [tail])
    with torch.no_grad():
        folded = trained.t5(ids, torch.zeros(text.RARE, text.T5_WIDTH))
    last = folded.shape[1] - 1
    assert full.shape[1] == text.T5_TOKENS == last + padding.item()
    assert (full[:, :last] - folded[:, :last]).abs().max() < 1e-4
    assert (full[:, last:] - folded[:, last:]).abs().max() < 1e-4
    assert (pooled - expected_pooled).abs().max() < 1e-4

    options = {"dtype": torch.float32}
    patcher = comfy.sd.load_diffusion_model(str(tmp_path / small_model.FLUX), model_options=options)
    generator = torch.Generator().manual_seed(6)
    latent = torch.randn(1, 16, 26, 40, generator=generator)
    sigma, guidance = torch.tensor([0.7]), torch.tensor([4.5])
    with torch.no_grad():
        theirs = patcher.model.diffusion_model(latent, sigma, full, pooled, guidance)
        ours = trained.flux(latent, sigma, folded, expected_pooled, padding, guidance)
    assert ours.std() > 0.05
    assert (theirs - ours).abs().max() < 1e-4


def test_unknown_words_share_the_rare_rows_and_known_ones_have_their_own(captions, trained):
    table = text.export_t5(trained.t5.state_dict(), captions.words, seed=0)["shared.weight"]
    assert table.shape == (text.T5_VOCABULARY, text.T5_WIDTH)
    assert torch.equal(table[captions.words], trained.t5.embedding)
    unknown = sorted(set(range(text.T5_VOCABULARY)).difference(captions.words))
    assert len(table[unknown].unique(dim=0)) == text.RARE


def test_a_caption_and_its_tail_tokenize_like_one_text(captions):
    head, tail = "an orange star on a white background", ", sharp focus. Shot at f/2.8, by hand."
    ids, _, _ = captions.encode([head], [tail])
    whole = captions.tokenizers.t5([head + tail])[0]
    assert (
        captions.tokenizers.clip([head])[0] + captions.tokenizers.clip([tail])[0]
        == captions.tokenizers.clip([head + tail])[0]
    )
    unknown = len(captions.words)
    assert [captions.place.get(word, unknown) for word in whole] == ids[0][: len(whole)].tolist()


def test_vision_twin_is_what_comfyui_loads(comfy, trained, tmp_path):
    """A picture at its own size through the exported files in ComfyUI's SigLIP and Redux."""
    import comfy.clip_vision
    import comfy.ldm.flux.redux

    weights.write_style(tmp_path, trained.state_dict())
    sizes = check_style_set(str(tmp_path / small_model.SIGLIP), str(tmp_path / small_model.REDUX))
    encoder = comfy.clip_vision.ClipVisionModel(
        {
            **sizes._asdict(),
            "model_type": "siglip_vision_model",
            "num_channels": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
    )
    encoder.load_sd(comfy.utils.load_torch_file(str(tmp_path / small_model.SIGLIP)))
    adapter = comfy.ldm.flux.redux.ReduxImageEncoder(sizes.hidden_size, sizes.text_width)
    adapter.load_state_dict(comfy.utils.load_torch_file(str(tmp_path / small_model.REDUX)))
    picture = draw(random_scene(random.Random(2), (256, 256)))
    pixels = torch.from_numpy(picture)[None].float() / 255
    with torch.no_grad():
        theirs = adapter(encoder.encode_image(pixels, crop=False).last_hidden_state.float())
        ours = trained.vision(torch.from_numpy(encoder_view(picture))[None])
    assert (ours - theirs).abs().max() < 5e-3 * theirs.abs().max()


def test_the_script_runs_through_all_stages_and_writes_six_files(comfy, tmp_path, monkeypatch):
    """With one step a stage, each of which leaves a checkpoint."""
    stages = ("decoder", "flow", "eyes", "style", "guidance", "negatives")
    for name in stages:
        monkeypatch.setattr(train, name.upper(), replace(getattr(train, name.upper()), steps=1))
    monkeypatch.setattr(train, "PICTURES", 1)
    monkeypatch.setattr(train, "STYLES", 1)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    threads = torch.get_num_threads()
    train.train(tmp_path / "checkpoints", tmp_path / "out")
    torch.set_num_threads(threads)
    assert {path.stem for path in (tmp_path / "checkpoints").glob("*.pt")} == set(stages)
    for _, shipped in small_model.FILES:
        made = comfy.utils.load_torch_file(str(tmp_path / "out" / shipped.name))
        before = comfy.utils.load_torch_file(str(shipped))
        assert {name: value.shape for name, value in made.items()} == {name: v.shape for name, v in before.items()}
        assert all(value.isfinite().all() for value in made.values())
