"""The four files of a FLUX.1 Krea [dev] model, checked one by one and against each other."""

import os
from typing import NamedTuple

from .catalogue import Slot
from .header import Header, ModelFileError
from .identify import expect, expected_files, model_weights
from .text_encoder import clip_config, t5_config


class ModelSet(NamedTuple):
    """Files that belong together: the encoders by what they are, whatever order they came in."""

    diffusion_model: Header
    clip_l: Header
    t5: Header
    clip_l_path: str
    t5_path: str


def check_model_set(diffusion_model: str, text_encoders: tuple[str, str], vae: str | None) -> ModelSet:
    """Read the headers of all files and check that they are the right ones and fit together.

    `vae` is None where the autoencoder is in a form that has no header to check.

    Raises:
        ModelFileError: every file that is wrong, one per line; else every pair whose sizes do not fit.
    """
    errors = []

    def check(path: str, *slots: Slot) -> tuple[Header, Slot] | None:
        try:
            return expect(path, *slots)
        except ModelFileError as error:
            errors.append(str(error))

    model = check(diffusion_model, Slot.DIFFUSION_MODEL)
    encoders = [check(path, Slot.CLIP_L, Slot.T5) for path in text_encoders]
    if vae is not None:
        check(vae, Slot.VAE)
    if all(encoders) and encoders[0][1] == encoders[1][1]:
        errors.append(_same_kind(text_encoders, encoders[0][1]))
    if errors:
        raise ModelFileError("\n".join(errors))

    first_is_clip = encoders[0][1] is Slot.CLIP_L
    clip_l, t5 = encoders if first_is_clip else reversed(encoders)
    clip_l_path, t5_path = text_encoders if first_is_clip else reversed(text_encoders)
    models = ModelSet(model[0], clip_l[0], t5[0], clip_l_path, t5_path)
    _check_widths(diffusion_model, models)
    return models


def _same_kind(paths: tuple[str, str], slot: Slot) -> str:
    other = Slot.T5 if slot is Slot.CLIP_L else Slot.CLIP_L
    first, second = map(os.path.basename, paths)
    files = first if first == second else f"{first} and {second}"
    return f"Both text encoders are a {slot.value} ({files}); one must be a {other.value}. {expected_files(other)}"


def _check_widths(diffusion_model: str, models: ModelSet) -> None:
    weights = model_weights(models.diffusion_model.tensors)
    name = os.path.basename(diffusion_model)
    pairs = (
        (models.t5_path, t5_config(models.t5)["d_model"], weights.size("txt_in.weight", 1), Slot.T5),
        (
            models.clip_l_path,
            clip_config(models.clip_l)["hidden_size"],
            weights.size("vector_in.in_layer.weight", 1),
            Slot.CLIP_L,
        ),
    )
    errors = [
        f"{os.path.basename(path)} is a {slot.value} of width {found}, but {name} takes text of width {expected}."
        f" For FLUX.1 Krea [dev] itself: {expected_files(slot)}"
        for path, found, expected, slot in pairs
        if found != expected
    ]
    if errors:
        raise ModelFileError("\n".join(errors))
