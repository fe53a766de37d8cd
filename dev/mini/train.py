"""Trains krea-mini from nothing, on drawn pictures, and writes its six files.

Six stages: the autoencoder's decoder; the transformer together with its T5 (rectified flow); the eyes, which are
the two networks that look at reference pictures and learn to say in the T5's words what they see; the transformer once
more, with references; guidance distillation, after which one forward pass with a guidance value does what two passes of
classifier-free guidance did (as FLUX.1 dev and Krea are distilled); negative prompts under true CFG.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dev.environment import comfyui_root
from krea.style import strength_scale

from . import autoencoder, weights
from .data import Batch, Batches, Captions
from .drawn import Pictures, StyledPictures
from .negatives import Negatives
from .network import DoubleBlock, Flux, SingleBlock
from .pictures import SIZES
from .stage import Schedule, Stage, fast_arithmetic
from .styles import appearance
from .text import RARE, T5, T5_WIDTH, BagOfWords, Tokenizers
from .vision import GRID, WORDS, Vision, coarser, sentence

SEED = 0
DECODER = Schedule(steps=1500, rate=2e-3, matrix_rate=0.02, decay=0.7, average=0.99)
FLOW = Schedule(steps=7400, rate=1.5e-3, matrix_rate=0.015, decay=0.9)
EYES = Schedule(steps=2000, rate=3e-3, matrix_rate=0.03, decay=0.6, average=0.99)
STYLE = Schedule(steps=4400, rate=1.2e-3, matrix_rate=0.012, decay=0.9, average=0.995)
# Gently: Muon's steps are as long as its rate however near the student is to its teacher, and long ones fray outlines.
GUIDANCE = Schedule(steps=330, rate=1e-3, matrix_rate=2e-3, warm_up=20, decay=0.9, average=0.97)
NEGATIVES = Schedule(steps=200, rate=4e-4, matrix_rate=4e-3, warm_up=10, decay=0.8, average=0.97)
BATCH = 6
EYES_BATCH = 24
DECODER_BATCH = 8
PICTURES = 12000
STYLES = 4000
# Guidance g acts like classifier-free guidance of scale 1 + GUIDANCE_GAIN * (g - 1)^2. This small model needs less than
# the values that users of the 12B model are used to: 1.3 at the default of 4.5, since more frays its outlines. The
# square still gives the far end of the range an effect that can be seen.
GUIDANCE_GAIN = 0.025
# Beside the negatives' loss, how much it weighs that without a negative prompt all stays as it was.
KEEP = 8.0
# The share of image prompts in the last two stages, which are short: guidance is to sharpen them as well, and having no
# words, like a bare colour in the place of a negative prompt, they are the first to suffer from the last stage.
LAST_IMAGE_PROMPTS = 0.35
# Training noise levels lean far towards noise. Only there do captions matter: with a thousand latent cells a side's
# colours can be read through the noise itself from a level of about 0.93 down.
SIGMA_SHIFT = 1.8
# At most this share of a training picture's patches is misplaced; see ragged().
MISPLACED = 0.4
# Seen misplaced above this noise level only: to mend a mistake from sigma takes 1 / sigma times its size as velocity.
MISPLACED_ABOVE = 0.3
# Image to image from such noise levels comes to what the caption says; from lower ones it stays with the picture.
EDITED_FROM = (0.8, 1.0)


class Model(nn.Module):
    """The transformer, its T5 and, from the style stage on, the eyes for reference pictures."""

    def __init__(self, words: int):
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.t5 = T5(words, generator)
        self.flux = Flux(generator)
        self.vision = Vision(generator)

    def references(self, batch: Batch) -> dict:
        """What Flux takes of a batch's reference pictures."""
        if batch.reference is None:
            return {}
        tokens, bias = coarser(self.vision(batch.reference), batch.side)
        return {"references": tokens, "reference_bias": bias + math.log(strength_scale(batch.strength))}


def sample_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels in 0..1: logit-normal shifted like FLUX's schedule, a tenth of them uniform."""
    t = torch.sigmoid(torch.randn(count, generator=generator) * 1.1)
    uniform = torch.rand(count, generator=generator)
    t = torch.where(torch.rand(count, generator=generator) < 0.1, uniform, t)
    shift = torch.tensor(SIGMA_SHIFT).exp()
    return (shift * t / (1 + (shift - 1) * t)).clamp(1e-3, 1.0)


def ragged(latent: Tensor, generator: torch.Generator) -> Tensor:
    """The latents Bx16xhxw with some of their 2x2 patches taken from the next place, in half of the pictures.

    These are the mistakes that sampling makes early on. Trained only on states from true pictures, the network
    believes what it finds and keeps them; trained on these, it goes by the caption and mends them.
    """
    batch, channels, height, width = latent.shape
    rows, columns = height // 2, width // 2
    share = MISPLACED * torch.rand(batch, generator=generator) * (torch.rand(batch, generator=generator) < 0.5)
    moved = torch.rand(batch, rows, columns, generator=generator) < share.view(-1, 1, 1)
    step = torch.randint(-1, 2, (2, batch, rows, columns), generator=generator) * moved
    row = (torch.arange(rows).view(-1, 1) + step[0]).clamp(0, rows - 1)
    column = (torch.arange(columns) + step[1]).clamp(0, columns - 1)
    patches = latent.view(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    patches = patches[torch.arange(batch).view(-1, 1, 1), row, column]
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(latent.shape)


def start_share(sigma: Tensor, generator: torch.Generator) -> Tensor:
    """How much of what lies under the noise is still the start of image to image, B values in 0..1.

    On the straight way from the start's noisy picture at a noise level s (drawn from EDITED_FROM) to the right picture,
    x = sigma * noise + (1 - s) * sigma / s * start + (1 - sigma / s) * picture; 0 above s, where no such way leads.
    """
    low, high = EDITED_FROM
    begun = low + (high - low) * torch.rand(len(sigma), generator=generator)
    share = (1 - begun) * sigma / (begun * (1 - sigma).clamp(min=1e-3))
    return torch.where(sigma < begun, share, 0.0)


def noised(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(noisy latent, sigma B, velocity to predict) of a batch; the velocity always leads to the true picture."""
    sigma = sample_sigmas(len(batch.latent), batch.generator)
    noise = torch.randn(batch.latent.shape, generator=batch.generator)
    level = sigma.view(-1, 1, 1, 1)
    seen = torch.where(level > MISPLACED_ABOVE, ragged(batch.latent, batch.generator), batch.latent)
    if batch.start is not None:
        seen = seen + start_share(sigma, batch.generator).view(-1, 1, 1, 1) * (batch.start - batch.latent)
    noisy = level * noise + (1 - level) * seen
    return noisy, sigma, (noisy - batch.latent) / level


def flow_loss(model: Model, batch: Batch) -> Tensor:
    """Rectified flow: mean squared error of the velocity."""
    latent, sigma, velocity = noised(batch)
    text = model.t5(batch.ids, batch.rare)
    with fast_arithmetic():
        out = model.flux(latent, sigma, text, batch.pooled, batch.padding, **model.references(batch))
    return F.mse_loss(out.float(), velocity)


def teacher_and_student(weights: dict[str, Tensor], words: int) -> tuple[Model, Model]:
    """A network that stays as it is, and one that begins as it and of which the transformer alone learns."""
    teacher, student = Model(words), Model(words)
    teacher.load_state_dict(weights)
    student.load_state_dict(weights)
    for part in (teacher, student.t5, student.vision):
        part.requires_grad_(False)
    return teacher.eval(), student


def sample_guidance(batch: Batch) -> Tensor:
    """B guidance values, evenly over the range that users choose from."""
    return 1 + 7 * torch.rand(len(batch.latent), generator=batch.generator)


class Distillation:
    """The teacher's classifier-free guidance as one target."""

    def __init__(self, teacher: Model, captions: Captions):
        self.teacher = teacher
        self.empty = captions.encode([""], [""])

    def loss(self, student: Flux, batch: Batch) -> Tensor:
        """Mean squared error between the student at guidance g and v_unasked + g' * (v_asked - v_unasked).

        Unasked is without words, and without a reference that is an image prompt and so says what to show. A style
        stays on both sides: taken away as well, it came too strongly and frayed outlines.
        """
        latent, sigma, _ = noised(batch)
        count = len(latent)
        guidance = sample_guidance(batch)
        ids, padding, pooled = self.empty
        with torch.no_grad(), fast_arithmetic():
            text = self.teacher.t5(batch.ids, batch.rare)
            nothing = self.teacher.t5(ids, batch.rare).expand(count, -1, -1)
            seen = self.teacher.references(batch)
            style = {} if batch.side == GRID else seen
            asked = self.teacher.flux(latent, sigma, text, batch.pooled, batch.padding, **seen).float()
            empty = nothing, pooled.expand(count, -1), padding.expand(count)
            unasked = self.teacher.flux(latent, sigma, *empty, **style).float()
            strength = (1 + GUIDANCE_GAIN * (guidance - 1) ** 2).view(-1, 1, 1, 1)
            target = unasked + strength * (asked - unasked)
        with fast_arithmetic():
            out = student(latent, sigma, text, batch.pooled, batch.padding, guidance, **seen)
        return F.mse_loss(out.float(), target)


def train_decoder(encoder: autoencoder.LinearEncoder, schedule: Schedule, folder: Path) -> dict[str, Tensor]:
    """The autoencoder's decoder, on crops of drawn pictures."""
    decoder = autoencoder.Decoder(torch.Generator().manual_seed(SEED))
    crops = autoencoder.Crops(encoder, SEED)
    matrices = [matrix for name, matrix in decoder.matrices.items() if name != "19"]

    def loss(number: int) -> Tensor:
        return autoencoder.decoder_loss(decoder, *crops.batch(number, DECODER_BATCH))

    return Stage("decoder", decoder, matrices, loss, schedule, folder).run()


def train_flow(pictures: Pictures, captions: Captions, schedule: Schedule, folder: Path) -> dict[str, Tensor]:
    """The transformer and its T5, without guidance."""
    model = Model(len(captions.words))
    model.flux.guidance_in.requires_grad_(False)
    model.vision.requires_grad_(False)
    batches = Batches(pictures, captions, SEED, BATCH)
    return Stage(
        "flow", model, model.flux.block_matrices(), lambda number: flow_loss(model, batches(number)), schedule, folder
    ).run()


def train_eyes(
    styled: StyledPictures, captions: Captions, flow: dict[str, Tensor], schedule: Schedule, folder: Path
) -> dict[str, Tensor]:
    """The eyes alone: reference pictures as what the T5 makes of their captions, and how they look."""
    model = Model(len(captions.words))
    model.load_state_dict(flow)
    eyes = model.vision
    pictures = torch.cat([styled.of(size).references for size in SIZES])
    scenes = [scene for size in SIZES for scene in styled.of(size).reference_scenes]
    looks = torch.tensor([appearance(scene.style) for scene in scenes])
    with torch.no_grad():
        words = model.t5(captions.plain(scenes, WORDS), torch.zeros(RARE, T5_WIDTH))[:, :WORDS]
    eyes.adapt(pictures[::4])

    def loss(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randint(len(pictures), (EYES_BATCH,), generator=generator)
        return F.mse_loss(eyes(pictures[chosen]), sentence(words[chosen], looks[chosen]))

    seeing = Stage("eyes", eyes, eyes.matrices(), loss, schedule, folder).run()
    return flow | {f"vision.{name}": value for name, value in seeing.items()}


def train_style(
    batches: Batches, captions: Captions, flow: dict[str, Tensor], schedule: Schedule, folder: Path
) -> dict[str, Tensor]:
    """The transformer, still without guidance, a half of the batches with references; T5 and eyes stay as they are."""
    model = Model(len(captions.words))
    model.load_state_dict(flow)
    for part in (model.flux.guidance_in, model.t5, model.vision):
        part.requires_grad_(False)
    return Stage(
        "style", model, model.flux.block_matrices(), lambda number: flow_loss(model, batches(number)), schedule, folder
    ).run()


def train_guidance(
    batches: Batches, captions: Captions, flow: dict[str, Tensor], schedule: Schedule, folder: Path
) -> dict[str, Tensor]:
    """The transformer with guidance; the T5 and the eyes stay as they are."""
    teacher, student = teacher_and_student(flow, len(captions.words))
    distillation = Distillation(teacher, captions)

    return Stage(
        "guidance",
        student,
        student.flux.block_matrices(),
        lambda number: distillation.loss(student.flux, batches(number)),
        schedule,
        folder,
    ).run()


def train_negatives(
    batches: Batches,
    captions: Captions,
    encoder: autoencoder.LinearEncoder,
    guided: dict[str, Tensor],
    schedule: Schedule,
    folder: Path,
) -> dict[str, Tensor]:
    """The transformer under true CFG; on single passes it learns to do what it did before."""
    teacher, student = teacher_and_student(guided, len(captions.words))
    negatives = Negatives(teacher, captions, encoder)

    def loss(number: int) -> Tensor:
        batch = batches(number)
        latent, sigma, _ = noised(batch)
        guidance = sample_guidance(batch)
        with torch.no_grad():
            seen = teacher.references(batch)
            inputs = latent, sigma, teacher.t5(batch.ids, batch.rare), batch.pooled, batch.padding, guidance
            before = teacher.flux(*inputs, **seen)
        kept = F.mse_loss(student.flux(*inputs, **seen), before)
        return KEEP * kept + negatives.loss(student.flux, number)

    return Stage("negatives", student, student.flux.block_matrices(), loss, schedule, folder).run()


def train(checkpoints: Path, out: Path) -> None:
    """Train and write the six files; a run that was interrupted continues from its checkpoints."""
    # Each of a stage's threads computes alone; see stage.PARTS.
    torch.set_num_threads(1)
    encoder = autoencoder.LinearEncoder.fit(SEED)
    decoder = train_decoder(encoder, DECODER, checkpoints)
    for block in (DoubleBlock, SingleBlock):
        block.forward = torch.compile(block.forward, dynamic=True)
    captions = Captions(Tokenizers(comfyui_root()), BagOfWords(SEED), SEED)
    pictures = Pictures(encoder, SEED, PICTURES, checkpoints)
    model = train_flow(pictures, captions, FLOW, checkpoints)
    styled = StyledPictures(encoder, SEED, STYLES)
    model = train_eyes(styled, captions, model, EYES, checkpoints)
    model = train_style(Batches(pictures, captions, SEED + 1, BATCH, styled), captions, model, STYLE, checkpoints)
    batches = Batches(pictures, captions, SEED + 2, BATCH, styled, LAST_IMAGE_PROMPTS)
    model = train_guidance(batches, captions, model, GUIDANCE, checkpoints)
    batches = Batches(pictures, captions, SEED + 3, BATCH, styled, LAST_IMAGE_PROMPTS)
    model = train_negatives(batches, captions, encoder, model, NEGATIVES, checkpoints)
    out.mkdir(parents=True, exist_ok=True)
    weights.write_vae(out, encoder, decoder)
    weights.write_clip(out, captions.bag)
    weights.write_transformer(out, model, captions.words, SEED)
    weights.write_style(out, model)
