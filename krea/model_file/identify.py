"""Which model a file holds, and whether it is the one that a slot needs."""

import os
from collections.abc import Mapping

from .catalogue import FILES, Slot, find_other_by_size
from .header import Header, ModelFileError, Tensor, read_header
from .kinds import RULES, Kind, Weights

_PREFIX = "model.diffusion_model."
_CHECKPOINT_PARTS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")


def model_weights(tensors: Mapping[str, Tensor]) -> Weights:
    """The tensors of the model itself, without the prefix that ComfyUI accepts before a diffusion model's names."""
    prefixed = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    return Weights(prefixed or tensors)


def identify(header: Header) -> Kind:
    """Name the model in a file. Never fails: an unknown model is described by its first tensors."""
    weights = model_weights(header.tensors)
    kind = next((kind for test, kind in RULES if test(weights)), None) or _unknown(weights)
    if Weights(header.tensors).starts(_PREFIX) and Weights(header.tensors).starts(*_CHECKPOINT_PARTS):
        title = f"a full checkpoint (in it {kind.title}, with text encoder or VAE)"
        return Kind(title, advice="It belongs in models/checkpoints.")
    other = find_other_by_size(header.file_size)
    if kind.slot and other:
        return Kind(f"{other.title}, told by its size of {other.size:,} bytes")
    return kind


def expect(path: str | os.PathLike, *slots: Slot) -> tuple[Header, Slot]:
    """Check that a file fits one of the slots; the header and the slot that it fits.

    Raises:
        ModelFileError: what the file is instead, and the file to use, with folder, size and address.
    """
    try:
        header = read_header(path)
    except ModelFileError as error:
        raise ModelFileError(f"{error} {expected_files(*slots)}") from None
    name = os.path.basename(os.fspath(path))
    kind = identify(header)
    if kind.slot not in slots:
        wanted = " or ".join(slot.value for slot in slots)
        sentences = (f"{name} is {kind.title}, not the {wanted}.", kind.advice, expected_files(*slots))
        raise ModelFileError(" ".join(filter(None, sentences)))
    weights = model_weights(header.tensors)
    missing = [needed for needed in kind.needs if needed not in weights]
    if missing:
        raise ModelFileError(
            f"{name} is only a part of {kind.title}: {missing[0]} is missing. It may be one of several shards;"
            f" the single file is needed. {expected_files(*slots)}"
        )
    if not name.lower().endswith((".safetensors", ".sft")):
        raise ModelFileError(
            f"{name} is a safetensors file under another ending, which ComfyUI would read as a pickle."
            " Rename it to end in .safetensors."
        )
    return header, kind.slot


def expected_files(*slots: Slot) -> str:
    """One sentence with the files that fit: name, size, folder and address."""
    return "Expected: " + "; or ".join(str(FILES[slot][0]) for slot in slots) + "."


def _unknown(weights: Weights) -> Kind:
    first = ", ".join(ascii(name)[1:-1][:60] for name in sorted(weights)[:3])
    return Kind(f"an unknown model with {len(weights)} tensors" + (f" (the first: {first})" if first else ""))
