"""Four files together: all wrong ones are named at once, and sizes that do not fit are stated."""

import subprocess
import sys

import pytest

from krea.model_file.catalogue import AE, CLIP_L, KREA_FP8, T5_FP8_SCALED
from krea.model_file.header import ModelFileError, read_header
from krea.model_file.model_set import check_model_set
from krea.model_file.text_encoder import CLIP_L_CONFIG, T5_XXL_CONFIG, clip_config, is_quantized, t5_config
from tests.unit.safetensors_files import clip, flux, t5, vae, write_sparse

MINI_T5 = {"width": 64, "layers": 2, "heads": 12, "head_width": 32, "feed": 128}


@pytest.fixture
def files(tmp_path):
    """Writes files under these names; a dict of their paths."""

    def write(**shapes):
        return {name: str(write_sparse(tmp_path / f"{name}.safetensors", found)) for name, found in shapes.items()}

    return write


@pytest.fixture
def small(files):
    return files(
        model=flux(128, 1, 1, text=64, pooled=32),
        clip=clip(32, 2, 64),
        t5=t5(**MINI_T5),
        ae=vae(),
        other=clip(48, 2, 64),
    )


def error_of(model, encoders, ae) -> str:
    with pytest.raises(ModelFileError) as error:
        check_model_set(model, encoders, ae)
    return str(error.value)


def test_full_size_files_fit(files):
    found = files(model=flux(), clip=clip(), t5=t5(), ae=vae())
    models = check_model_set(found["model"], (found["clip"], found["t5"]), found["ae"])
    assert clip_config(models.clip_l) == CLIP_L_CONFIG
    assert t5_config(models.t5) == T5_XXL_CONFIG


@pytest.mark.parametrize("order", [("clip", "t5"), ("t5", "clip")])
def test_encoders_in_either_order(small, order):
    models = check_model_set(small["model"], tuple(small[name] for name in order), small["ae"])
    assert (models.clip_l_path, models.t5_path) == (small["clip"], small["t5"])
    assert "shared.weight" in models.t5.tensors and "shared.weight" not in models.clip_l.tensors


def test_a_vae_without_a_header_is_left_out(small):
    check_model_set(small["model"], (small["clip"], small["t5"]), None)


def test_all_wrong_files_are_named_at_once(small):
    lines = error_of(small["ae"], (small["model"], small["ae"]), small["t5"]).splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "ae.safetensors is a 16-channel VAE",
        "model.safetensors is a FLUX.1 [dev]-shaped diffusion model",
        "ae.safetensors is a 16-channel VAE",
        "t5.safetensors is a T5 text encoder",
    ]
    assert str(KREA_FP8) in lines[0] and str(AE) in lines[3]
    assert str(CLIP_L) in lines[1] and str(T5_FP8_SCALED) in lines[1]


def test_two_encoders_of_one_kind(small):
    error = error_of(small["model"], (small["t5"], small["t5"]), small["ae"])
    assert "Both text encoders are a T5 text encoder (t5.safetensors); one must be a CLIP-L" in error
    assert str(CLIP_L) in error
    error = error_of(small["model"], (small["clip"], small["other"]), small["ae"])
    assert "(clip.safetensors and other.safetensors); one must be a T5" in error
    assert str(T5_FP8_SCALED) in error


def test_widths_that_do_not_fit_are_both_stated(small, files):
    full = files(full=flux(double=1, single=1))["full"]
    lines = error_of(full, (small["clip"], small["t5"]), small["ae"]).splitlines()
    assert lines[0].startswith(
        "t5.safetensors is a T5 text encoder of width 64, but full.safetensors takes text of width 4096."
    )
    assert lines[1].startswith(
        "clip.safetensors is a CLIP-L text encoder of width 32, but full.safetensors takes text of width 768."
    )


def test_widths_are_read_behind_a_prefix(small, files):
    prefixed = {f"model.diffusion_model.{name}": shape for name, shape in flux(128, 1, 1, text=64, pooled=32).items()}
    model = files(prefixed=prefixed)["prefixed"]
    check_model_set(model, (small["clip"], small["t5"]), small["ae"])


def test_t5_sizes_come_from_the_shapes(small):
    assert t5_config(read_header(small["t5"])) == {
        "d_model": 64,
        "d_ff": 128,
        "d_kv": 32,
        "num_heads": 12,
        "num_layers": 2,
    }


@pytest.mark.parametrize(
    ("width", "metadata", "heads"), [(32, {}, 1), (256, {}, 4), (32, {"num_attention_heads": "2"}, 2)]
)
def test_clip_heads_come_from_metadata_or_are_64_wide(tmp_path, width, metadata, heads):
    path = write_sparse(tmp_path / "clip.safetensors", clip(width, 3, 96), metadata=metadata)
    assert clip_config(read_header(path)) == {
        "hidden_size": width,
        "intermediate_size": 96,
        "num_attention_heads": heads,
        "num_hidden_layers": 3,
    }


@pytest.mark.parametrize(
    ("more", "metadata", "quantized"),
    [
        ({}, {}, False),
        ({"scaled_fp8": (2,)}, {}, True),
        ({"encoder.block.0.layer.0.SelfAttention.q.comfy_quant": (30,)}, {}, True),
        ({}, {"_quantization_metadata": "{}"}, True),
    ],
)
def test_quantized_files_are_told(tmp_path, more, metadata, quantized):
    path = write_sparse(tmp_path / "t5.safetensors", t5(**MINI_T5) | more, metadata=metadata)
    assert is_quantized(read_header(path)) is quantized


def test_no_torch_is_imported():
    code = "import sys, krea.model_file.model_set; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
