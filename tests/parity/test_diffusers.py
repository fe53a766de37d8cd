"""The same weights, prompt, seed and settings through diffusers' FluxPipeline and through the pack's nodes."""

import pytest
import torch

from dev import small_model

PROMPT = "a red circle above a yellow star on a blue background"
NEGATIVE = "a green square"
SEED = 1234
# Ratio, width and height in px at two sizes, batch, guidance, true CFG: every value of each with every ratio and size.
CASES = [
    ("1:1", 192, 192, 4, 4.5, 1.0),
    ("1:1", 192, 192, 1, 7.0, 2.0),
    ("1:1", 320, 320, 1, 2.5, 1.0),
    ("1:1", 320, 320, 4, 4.5, 2.0),
    ("16:9", 256, 144, 1, 4.5, 2.0),
    ("16:9", 256, 144, 4, 2.5, 1.0),
    ("16:9", 432, 240, 4, 7.0, 2.0),
    ("16:9", 432, 240, 1, 4.5, 1.0),
    ("2:3", 160, 240, 4, 2.5, 2.0),
    ("2:3", 160, 240, 1, 7.0, 1.0),
    ("2:3", 256, 384, 1, 4.5, 2.0),
    ("2:3", 256, 384, 4, 7.0, 1.0),
]


@pytest.fixture(scope="module")
def pipeline(comfy):
    from tests.parity.reference import flux_pipeline

    folder = small_model.FOLDER
    return flux_pipeline(folder / small_model.FLUX, folder / small_model.CLIP_L, folder / small_model.T5, comfy.root)


@pytest.mark.parametrize("ratio, width, height, batch, guidance, true_cfg", CASES)
def test_final_latents_are_those_of_diffusers(
    loaded, encode, sample, pipeline, ratio, width, height, batch, guidance, true_cfg
):
    positive, negative = encode(PROMPT, NEGATIVE)
    ours = sample(
        latent=torch.zeros(batch, 16, height // 8, width // 8),
        positive=positive,
        negative=negative,
        seed=SEED,
        guidance=guidance,
        true_cfg=true_cfg,
    )
    packed = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE if true_cfg > 1 else None,
        true_cfg_scale=true_cfg,
        guidance_scale=guidance,
        num_inference_steps=28,
        width=width,
        height=height,
        num_images_per_prompt=batch,
        generator=[torch.Generator().manual_seed(SEED + i) for i in range(batch)],
        max_sequence_length=512,
        output_type="latent",
    ).images
    theirs = pipeline._unpack_latents(packed, height, width, pipeline.vae_scale_factor)
    ours = loaded.model.model.process_latent_in(ours)  # from the VAE's scale to the model's
    for index in range(batch):
        error = (ours[index] - theirs[index]).norm() / theirs[index].norm()
        assert error < 1e-3, f"image {index}: relative error {error:.1e}"
