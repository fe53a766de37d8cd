import torch

from krea.noise import batch_noise
from krea.seeds import batch_seeds


def test_an_image_of_a_batch_starts_from_the_noise_of_its_own_seed():
    batch = batch_noise((4, 16, 26, 40), batch_seeds(7, 4))
    for index in range(4):
        alone = batch_noise((1, 16, 26, 40), [7 + index])
        assert torch.equal(batch[index : index + 1], alone)
    assert not torch.equal(batch[0], batch[1])


def test_noise_is_that_of_torch_for_the_seed():
    expected = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(42))
    assert torch.equal(batch_noise((1, 16, 8, 8), [42]), expected)


def test_the_global_rng_is_left_alone():
    before = torch.get_rng_state()
    batch_noise((2, 16, 8, 8), [1, 2])
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_wrap_at_64_bits_and_torch_takes_the_largest():
    seeds = batch_seeds(2**64 - 2, 4)
    assert seeds == [2**64 - 2, 2**64 - 1, 0, 1]
    batch_noise((4, 1, 2, 2), seeds)


def test_an_image_cut_out_of_a_batch_keeps_its_seed():
    assert batch_seeds(100, 1, batch_index=[2]) == [102]
