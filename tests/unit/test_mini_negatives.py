"""Training for negative prompts: what is drawn as wanted, and that a batch is a function of its number."""

import math
import random

import pytest
import torch

from dev.mini import negatives as negatives_module
from dev.mini.captions import article
from dev.mini.negatives import APART, PAIRS, Negatives, likelihoods
from dev.mini.pictures import COLOURS, SQUARE, draw, held_out, single_scene
from dev.mini.train import Model


@pytest.fixture
def negatives(trained, encoder, captions, monkeypatch):
    monkeypatch.setattr(negatives_module, "STATES", (0, 3, 14))
    return Negatives(trained, captions, encoder)


def shares(negatives: Negatives, colour: str, sigma: float) -> torch.Tensor:
    """Shares of the colours that a star on a white wall may have, in a noisy picture of one with its own light."""
    scene = single_scene(SQUARE, "white", colour, "star", random.Random(8))
    noise = torch.randn(16, 32, 32, generator=torch.Generator().manual_seed(1))
    state = (1 - sigma) * torch.from_numpy(negatives.encoder(draw(scene))) + sigma * noise
    drawings = negatives._drawings(SQUARE, [("star", "white")], [[name for name in COLOURS if name != "white"]])
    (row,) = likelihoods(state[None], drawings, sigma)
    return row.softmax(0)


@pytest.mark.parametrize("colour", ["red", "purple", "black"])
def test_the_colour_under_the_noise_is_the_likely_one(negatives, colour):
    names = [name for name in COLOURS if name != "white"]
    assert shares(negatives, colour, 0.85)[names.index(colour)] > 0.99


def test_pure_noise_is_explained_by_every_colour_alike(negatives):
    assert shares(negatives, "red", 1.0) == pytest.approx(1 / 7)


@pytest.mark.parametrize("share", [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75)])
def test_the_target_leads_to_the_mean_of_the_colours_whichever_is_drawn(negatives, monkeypatch, share):
    """With a teacher that knows each picture exactly, and not only on an average over the draws."""
    subjects, colours, sigma = [("star", "white")], [["red", "blue"]], torch.tensor([0.9])
    drawings = negatives._drawings(SQUARE, subjects, colours)
    x = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(2))
    asked = []
    monkeypatch.setattr(negatives, "_read", lambda texts, tails: asked.append(texts[0]) or (None, None, None))
    known = {f"a {name} star on a white background": picture for name, picture in zip(*colours, *drawings, strict=True)}
    monkeypatch.setattr(
        negatives.teacher.flux, "forward", lambda x, sigma, *_: (x - known[asked[-1]]) / sigma.view(-1, 1, 1, 1)
    )
    shares = [torch.tensor(share)]
    expected = (x[0] - torch.tensordot(shares[0], drawings[0], 1)) / 0.9
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        target = negatives._towards(x, sigma, None, subjects, [""], colours, drawings, shares, generator)
        torch.testing.assert_close(target[0], expected, rtol=1e-5, atol=1e-5)
    assert len(set(asked)) == (1 if max(share) == 1 else 2)


def test_a_batch_is_a_function_of_its_number(negatives):
    student = Model(len(negatives.captions.words)).flux
    losses = [negatives.loss(student, number).item() for number in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_what_is_wanted_is_never_near_the_unwanted_colour_nor_the_wall_nor_held_out(negatives, monkeypatch):
    texts = []
    encode = negatives.captions.encode
    monkeypatch.setattr(negatives.captions, "encode", lambda heads, tails: texts.append(heads) or encode(heads, tails))
    student = Model(len(negatives.captions.words)).flux
    seen = 0
    for number in range(3):
        texts.clear()
        negatives.loss(student, number)
        prompts, unwanted, *wanted = texts
        assert len(wanted) == len(negatives_module.STATES)
        for pair in range(PAIRS):
            _, kind, _, _, wall, _ = prompts[pair].split()
            (bad,) = (name for name in COLOURS if name in unwanted[pair])
            assert bad != wall
            for text in (row[pair] for row in wanted):
                (colour,) = (name for name in COLOURS if text.startswith(f"{article(name)} {kind} on"))
                assert text == f"{article(colour)} {kind} on {article(wall)} background"
                assert min(math.dist(COLOURS[colour], COLOURS[other]) for other in (bad, wall)) > APART
                assert not held_out(colour, kind, wall)
                seen += 1
    assert seen == 3 * PAIRS * len(negatives_module.STATES)


def test_the_loss_falls_when_the_network_learns_a_batch(negatives):
    student = Model(len(negatives.captions.words)).flux
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = negatives.loss(student, 7)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
