"""Training of krea-mini's eyes, and of the transformer with references."""

import random
from dataclasses import replace

import pytest
import torch

from dev.mini import text, train
from dev.mini.captions import plain_caption
from dev.mini.data import END, PADDING, Batches
from dev.mini.drawn import TARGETS, Pictures, StyledPictures
from dev.mini.pictures import SIZES, SQUARE, draw, random_scene
from dev.mini.stage import Schedule
from dev.mini.styles import PLAIN, Style, appearance, random_style
from dev.mini.train import Model
from dev.mini.vision import GRID, LOUDNESS, SIDE, WORD_COLUMNS, WORDS, encoder_view, positions, sentence


def test_references_are_in_the_style_of_their_pictures_and_alone_they_are_the_picture(encoder, captions, tmp_path):
    styled = StyledPictures(encoder, 0, 1)
    batches = Batches(Pictures(encoder, 0, 1, tmp_path), captions, 0, 6, styled)
    drawn = [batches(number) for number in range(60)]
    referenced = [batch for batch in drawn if batch.reference is not None]
    assert 15 < len(referenced) < 40
    for size in SIZES:
        own = styled.of(size)
        assert len(own.references) == len(own.reference_scenes) and len(own.latents) == TARGETS * len(own.references)
        for place, scene in enumerate(own.scenes):
            assert scene.style == own.reference_scenes[place // TARGETS].style
    edited = [
        (start != latent).any().item()
        for batch in drawn
        if batch.reference is None
        for start, latent in zip(batch.start, batch.latent, strict=True)
    ]
    assert 0.15 < sum(edited) / len(edited) < 0.45
    assert all(batch.start is None for batch in referenced)
    image_prompts = [batch for batch in referenced if batch.side == GRID]
    assert 2 < len(image_prompts) < len(referenced) / 2
    alone = 0
    for batch in referenced:
        rows, columns = batch.latent.shape[2:]
        own = styled.of((8 * columns, 8 * rows))
        for reference, latent, ids in zip(batch.reference, batch.latent, batch.ids, strict=True):
            (place,) = (own.references == reference).flatten(1).all(1).nonzero().flatten().tolist()
            wordless = ids[0].item() == captions.place[END]
            if batch.side == GRID:
                alone += wordless
                assert batch.strength == 1
                assert torch.equal(latent, own.reference_latents[place].float())
            else:
                assert not wordless
    assert 0.5 < alone / (6 * len(image_prompts)) < 0.95


@pytest.mark.parametrize("side", [GRID, GRID // 2])
def test_guidance_sharpens_image_prompts_and_leaves_styles(encoder, captions, tmp_path, monkeypatch, side):
    """The teacher is asked with the reference; without a word, only an image prompt's reference goes as well."""
    batch = Batches(Pictures(encoder, 0, 1, tmp_path), captions, 0, 2)(1)
    batch.reference = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    batch.side = side
    teacher, student = train.teacher_and_student(Model(len(captions.words)).state_dict(), len(captions.words))
    seen = []
    monkeypatch.setattr(
        teacher.flux, "forward", lambda latent, *_, **references: seen.append(bool(references)) or latent
    )
    train.Distillation(teacher, captions).loss(student.flux, batch)
    assert seen == [True, side < GRID]


def test_plain_captions_tell_scenes_apart_in_words_that_fit(captions):
    rng = random.Random(3)
    scenes = [random_scene(rng, SQUARE) for _ in range(300)]
    told = {plain_caption(scene): replace(scene, light=(0, 0), tint=()) for scene in scenes}
    for scene in scenes:
        assert told[plain_caption(scene)] == replace(scene, light=(0, 0), tint=())
    ids = captions.plain(scenes, WORDS)
    assert ids.shape == (300, WORDS + text.REACH)
    assert (ids[:, WORDS:] == captions.place[PADDING]).all()
    assert ((ids == captions.place[END]).sum(1) == 1).all()


def test_the_eyes_are_to_say_the_words_on_the_left_and_the_looks_on_the_right():
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(2, WORDS, text.T5_WIDTH, generator=generator)
    styles = [PLAIN, Style(tint=(255.0, 0.0, 127.5), palette=0.5, outline=1.0)]
    looks = torch.tensor([appearance(style) for style in styles])
    assert looks.tolist() == [[0] * 8, [0, 0, 1, 0, 0.5, 0.5, -0.5, 0]]
    grid = sentence(words, looks).unflatten(1, (GRID, GRID))
    assert torch.equal(grid[:, 4:6, :WORD_COLUMNS].flatten(1, 2), words)
    right = grid[:, :, WORD_COLUMNS:]
    assert torch.equal(right, right[:, :1, :1].expand_as(right)) and not right[0].any()
    # No two amounts speak the same direction, so the length says how much there is in all.
    assert right[1, 0, 0].norm().item() == pytest.approx(LOUDNESS * (1 + 3 * 0.25) ** 0.5, rel=1e-4)


def views(scenes):
    return torch.stack([torch.from_numpy(encoder_view(draw(scene))) for scene in scenes])


def test_the_eyes_start_with_views_in_which_faint_strokes_count(captions):
    rng = random.Random(0)
    scenes = [replace(random_scene(rng, SQUARE), style=random_style(rng)) for _ in range(60)]
    eyes = Model(len(captions.words)).vision
    eyes.adapt(views(scenes))
    plain, hatched = (replace(scenes[0], style=style) for style in (PLAIN, Style(hatching=1.0)))
    with torch.no_grad():
        seen, strokes = (
            eyes.siglip.embeddings.patch_embedding(views(some).float() / 127.5 - 1)
            for some in (scenes, (plain, hatched))
        )
    seen = seen.transpose(0, 1).flatten(1)
    assert seen.mean(1).abs().max() < 0.01
    covariance = seen.cov()
    assert (covariance - covariance.diag().diag()).abs().max() < 0.01 * covariance.diag().max()
    assert (strokes[1] - strokes[0]).square().sum(0).mean() > 1
    places = positions()
    assert torch.cdist(places, places).add(torch.eye(GRID * GRID) * 9).min() > 0.5


def test_the_eyes_learn_and_nothing_else_does(encoder, captions, tmp_path):
    styled = StyledPictures(encoder, 0, 1)
    flow = Model(len(captions.words)).state_dict()
    schedule = Schedule(steps=12, rate=3e-3, matrix_rate=0.03, warm_up=1, average=0.5)
    seeing = train.train_eyes(styled, captions, flow, schedule, tmp_path)
    assert {name.split(".")[0] for name in flow if not torch.equal(flow[name], seeing[name])} == {"vision"}
    own = styled.of(SQUARE)
    looks = torch.tensor([appearance(scene.style) for scene in own.reference_scenes])
    model = Model(len(captions.words))
    with torch.no_grad():
        words = model.t5(captions.plain(own.reference_scenes, WORDS), torch.zeros(text.RARE, text.T5_WIDTH))[:, :WORDS]
        wanted = sentence(words, looks)
        before = (model.vision(own.references) - wanted).square().mean()
        model.load_state_dict(seeing)
        assert (model.vision(own.references) - wanted).square().mean() < 0.8 * before


def test_references_at_a_bias_far_below_zero_are_no_references(trained, captions):
    batch_text = captions.encode(["a red circle on a blue background"], [""])
    ids, padding, pooled = batch_text
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    rare = torch.zeros(text.RARE, text.T5_WIDTH)
    tokens = torch.randn(1, 9, text.T5_WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        words = trained.t5(ids, rare)
        inputs = (latent, torch.tensor([0.7]), words, pooled, padding)
        without = trained.flux(*inputs)
        hidden = trained.flux(*inputs, references=tokens, reference_bias=-1e4)
        shown = trained.flux(*inputs, references=tokens)
    assert torch.allclose(without, hidden, atol=1e-5)
    assert not torch.allclose(without, shown, atol=1e-3)
