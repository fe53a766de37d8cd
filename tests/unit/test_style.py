"""Style references: strength, weights and detail as attention mass, and attention with a bias against a dense mask."""

import math

import pytest
import torch

from krea.style import ROWS, Keys, biased_attention, crop_square, key_biases, pad_square, pool_tokens, strength_scale


def dense(query, key, value, bias, mask=None):
    """Attention in float64 with a whole (L, L) bias."""
    logits = query.double() @ key.double().mT / math.sqrt(query.shape[-1]) + bias
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.double()
    return (logits.softmax(-1) @ value.double()).transpose(1, 2).flatten(2)


def attend(key, value):
    """PyTorch's attention, as ComfyUI calls it."""

    def attention(query, mask):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)

    return attention


def heads(length, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 2, length, 8, generator=generator) for _ in range(3))


def test_strength_runs_from_nothing_to_a_whole_picture():
    assert strength_scale(0) == 0
    assert strength_scale(1) == pytest.approx(1)
    values = [strength_scale(step / 20) for step in range(21)]
    assert values == sorted(set(values))
    assert strength_scale(0.5) == pytest.approx(0.151, abs=0.001)


def test_one_whole_reference_at_full_strength_is_plain_redux():
    assert key_biases(1.0, 729, [0.7], [729]) == [0.0]


def test_the_smallest_strengths_and_weights_are_still_numbers():
    assert key_biases(1e-17, 729, [0.7], [81])[0] == pytest.approx(
        key_biases(1e-16, 729, [0.7], [81])[0] - math.log(10)
    )
    assert all(map(math.isfinite, key_biases(0.1, 729, [5e-324, 1.0], [81, 81])))


@pytest.mark.parametrize("counts", [[729, 729, 729], [81, 81, 81], [729, 81, 9]])
def test_detail_leaves_each_references_mass_alone(counts):
    """Mass: how many plain tokens it would take, n * e^b."""
    weights = [1.0, 0.5, 0.1]
    biases = key_biases(0.5, 729, weights, counts)
    masses = [count * math.exp(bias) for count, bias in zip(counts, biases, strict=True)]
    whole = strength_scale(0.5) * 729
    assert masses == pytest.approx([whole * weight / 1.6 for weight in weights])


def test_a_copy_in_a_second_socket_at_half_weight_changes_nothing():
    q, k, v = heads(12)
    (once,) = key_biases(0.6, 4, [1.0], [4])
    twice = key_biases(0.6, 4, [0.5, 0.5], [4, 4])
    single = biased_attention(attend(k, v), q, [Keys(4, 4, once)])
    copied_k, copied_v = (torch.cat((x, x[:, :, 4:8]), 2) for x in (k, v))
    rows = torch.cat((q, q[:, :, 4:8]), 2)
    double = biased_attention(attend(copied_k, copied_v), rows, [Keys(4, 4, twice[0]), Keys(12, 4, twice[1])])
    assert torch.allclose(single, double[:, :12], atol=1e-6)


def test_without_a_bias_attention_is_left_alone():
    q, k, v = heads(10)
    seen = []
    biased_attention(lambda rows, mask: seen.append((rows, mask)) or rows, q, [Keys(2, 4, 0.0)])
    assert seen[0][0] is q and seen[0][1] is None


def test_a_key_bias_needs_no_square_mask():
    q, k, v = heads(10)
    shapes = []
    biased_attention(lambda rows, mask: shapes.append(mask.shape) or rows, q, [Keys(2, 4, 1.5)])
    assert shapes == [(1, 1, 1, 10)]


@pytest.mark.parametrize("mask", [None, "boolean", "numbers"])
def test_weights_are_those_of_a_dense_mask(mask):
    q, k, v = heads(30)
    generator = torch.Generator().manual_seed(3)
    if mask is not None:
        mask = torch.rand(2, 30, 30, generator=generator) < 0.8 if mask == "boolean" else torch.randn(2, 30, 30)
    bias = torch.zeros(30, dtype=torch.float64)
    bias[3:9] += 1.3
    bias[12:20] -= 2.1
    result = biased_attention(attend(k, v), q, [Keys(3, 6, 1.3), Keys(12, 8, -2.1)], mask)
    assert torch.allclose(result.double(), dense(q, k, v, bias, None if mask is None else mask[:, None]), atol=1e-5)


@pytest.mark.parametrize("mask", [None, "boolean", "numbers"])
def test_a_region_is_that_of_a_dense_mask(mask):
    """More queries than are looked at together, shares of 0, of 1 and between."""
    length = ROWS + 40
    q, k, v = heads(length, batch=1)
    share = torch.rand(length, generator=torch.Generator().manual_seed(1))
    share[:20], share[700:900] = 1.0, 0.0
    bias = torch.zeros(length, length, dtype=torch.float64)
    bias[:, 5:15] += 0.8 + share.double().log()[:, None]
    bias[:, 15:18] -= 1.0
    if mask is not None:
        mask = torch.rand(length, length) < 0.8 if mask == "boolean" else torch.randn(length, length)
        mask = mask if mask.dtype != torch.bool else mask | torch.eye(length, dtype=torch.bool)
    result = biased_attention(attend(k, v), q, [Keys(5, 10, 0.8, share), Keys(15, 3, -1.0)], mask)
    assert result.shape == (1, length, 16)
    assert torch.allclose(result.double(), dense(q, k, v, bias, mask), atol=1e-5)


def test_every_token_is_kept_as_it_is():
    tokens = torch.randn(6, 6, 4)
    assert torch.equal(pool_tokens(tokens, torch.ones(6, 6), 6), tokens.flatten(0, 1))
    assert torch.equal(pool_tokens(tokens, torch.ones(6, 6), 32), tokens.flatten(0, 1))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_fewer_tokens_are_means(side):
    tokens = torch.randn(6, 6, 4)
    pooled = pool_tokens(tokens, torch.ones(6, 6), side)
    assert pooled.shape == (side * side, 4)
    if side in (1, 2, 3):
        expected = tokens.unflatten(0, (side, -1)).unflatten(2, (side, -1)).mean((1, 3)).flatten(0, 1)
        assert torch.allclose(pooled, expected, atol=1e-6)


def test_what_does_not_count_is_not_in_the_mean():
    tokens = torch.full((4, 4, 2), 100.0)
    tokens[:2] = 1.0
    coverage = torch.zeros(4, 4)
    coverage[:2] = 1.0
    assert torch.equal(pool_tokens(tokens, coverage, 4), torch.ones(8, 2))
    assert torch.allclose(pool_tokens(tokens, coverage, 2), torch.ones(2, 2))
    assert torch.allclose(pool_tokens(tokens, coverage, 1), torch.ones(1, 2))


def test_a_part_smaller_than_a_token_still_counts():
    coverage = torch.zeros(4, 4)
    coverage[1, 2] = 0.01
    tokens = torch.randn(4, 4, 3)
    assert torch.equal(pool_tokens(tokens, coverage, 4), tokens[1, 2][None])
    assert torch.allclose(pool_tokens(tokens, coverage, 2), tokens[1, 2][None], atol=1e-3)


def test_squares():
    picture = torch.rand(1, 4, 10, 3)
    padded = pad_square(picture, 0.5)
    assert padded.shape == (1, 10, 10, 3)
    assert torch.equal(padded[:, 3:7], picture)
    assert (padded[:, :3] == 0.5).all() and (padded[:, 7:] == 0.5).all()
    assert torch.equal(crop_square(picture), picture[:, :, 3:7])
    assert torch.equal(crop_square(picture.transpose(1, 2)), picture.transpose(1, 2)[:, 3:7])
