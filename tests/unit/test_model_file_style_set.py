"""Vision encoder and adapter together: sizes read from their shapes, wrong files named."""

import pytest

from krea.model_file.catalogue import REDUX, SIGLIP
from krea.model_file.header import ModelFileError
from krea.model_file.style_set import StyleSizes, check_style_set
from tests.unit.safetensors_files import clip, flux, redux, siglip, write_sparse

PUBLISHED = StyleSizes(1152, 4304, 16, 27, 14, 384, 27, 4096)


@pytest.fixture
def check(tmp_path):
    """Checks a vision encoder and an adapter with these tensors."""

    def run(vision, adapter, metadata=None):
        vision = write_sparse(tmp_path / "vision.safetensors", vision, metadata=metadata)
        return check_style_set(str(vision), str(write_sparse(tmp_path / "adapter.safetensors", adapter)))

    return run


def test_published_files(check):
    assert check(siglip(), redux()) == PUBLISHED


def test_other_sizes(check):
    assert check(siglip(grid=32, patch=16), redux()) == PUBLISHED._replace(patch_size=16, image_size=512, grid=32)
    small = check(siglip(72, 2, 96, 6), redux(72, 64))
    assert small == StyleSizes(72, 96, 1, 2, 14, 84, 6, 64)
    assert check(siglip(72, 2, 96, 6), redux(72, 64), {"num_attention_heads": "4"}).num_attention_heads == 4


def test_wrong_files_are_all_named(check):
    with pytest.raises(ModelFileError) as error:
        check(clip(), flux(128, 1, 1))
    first, second = str(error.value).splitlines()
    assert first.startswith("vision.safetensors is a CLIP-L text encoder, not the SigLIP vision encoder.")
    assert str(SIGLIP) in first
    assert second.startswith("adapter.safetensors is a FLUX.1 [dev]-shaped diffusion model, not the FLUX.1 Redux [dev]")
    assert str(REDUX) in second


def test_files_in_each_others_place_are_named(check):
    with pytest.raises(ModelFileError) as error:
        check(redux(), siglip())
    first, second = str(error.value).splitlines()
    assert "is FLUX.1 Redux, a style model" in first and "models/style_models" in first
    assert "is a SigLIP vision encoder" in second and "models/clip_vision" in second


def test_a_clip_vision_encoder_is_not_siglip(check):
    with pytest.raises(ModelFileError, match="vision.safetensors is a vision encoder of another kind than SigLIP"):
        check(siglip(1024, 24, 4096) | {"vision_model.embeddings.class_embedding": (1024,)}, redux())


def test_sizes_that_do_not_fit_are_stated(check):
    with pytest.raises(ModelFileError, match="vision.safetensors gives tokens of width 72.*takes 1152.*sigclip"):
        check(siglip(72, 2, 96, 6), redux())


def test_half_an_adapter(check):
    with pytest.raises(ModelFileError, match="only a part of FLUX.1 Redux, a style model: redux_up.bias is missing"):
        check(siglip(), {name: shape for name, shape in redux().items() if name != "redux_up.bias"})


@pytest.mark.parametrize("heads", ["0", "-1", "x", "", "5", "9" * 5000])
def test_a_number_of_heads_that_cannot_be(check, heads):
    with pytest.raises(ModelFileError, match="says num_attention_heads .* does not divide its width of 72"):
        check(siglip(72, 2, 96, 6), redux(72, 64), {"num_attention_heads": heads})


def test_positions_that_make_no_square(check):
    positions = {"vision_model.embeddings.position_embedding.weight": (35, 72)}
    with pytest.raises(ModelFileError, match="35 positions, which make no square"):
        check(siglip(72, 2, 96, 6) | positions, redux(72, 64))


def test_heads_of_published_widths(check):
    assert check(siglip(768, 2, 96, 6), redux(768, 64)).num_attention_heads == 12
    with pytest.raises(ModelFileError, match="width of 217, which heads of 72 or 64 do not divide"):
        check(siglip(217, 2, 96, 6), redux(217, 64))


def test_an_adapter_whose_layers_do_not_follow_each_other(check):
    layers = redux(72, 64)
    with pytest.raises(ModelFileError, match="adapter.safetensors has layers of .* which do not follow each other"):
        check(siglip(72, 2, 96, 6), layers | {"redux_down.weight": (64, 100)})
