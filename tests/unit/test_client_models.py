"""Which model files of a server a request takes, and what it says of those that are missing."""

import pytest

from krea.model_file.catalogue import FILES, SMALL_MODEL, Slot
from krea_client.errors import ModelsMissing
from krea_client.graph import LOADER_INPUTS
from krea_client.models import find, needed, on_server

PUBLISHED = {slot: [files[0].name] for slot, files in FILES.items()}
SMALL = {slot: [name] for slot, name in SMALL_MODEL.items()}
NOTHING = {slot: [] for slot in Slot}


def files(offered, chosen=()):
    return {each.slot: each.file for each in find(offered, dict(chosen))}


def test_the_published_files_are_taken_before_the_small_model():
    both = {slot: SMALL[slot] + ["other.safetensors"] + PUBLISHED[slot] for slot in Slot}
    assert files(both) == {slot: names[0] for slot, names in PUBLISHED.items()}


def test_the_small_model_is_taken_only_whole_and_alone():
    assert files(SMALL) == SMALL_MODEL
    mixed = SMALL | {Slot.VAE: SMALL[Slot.VAE] + PUBLISHED[Slot.VAE]}
    assert files(mixed)[Slot.VAE] == "ae.safetensors" and files(mixed)[Slot.T5] is None


def test_the_recommended_one_of_several_published_files_is_taken():
    offered = PUBLISHED | {Slot.T5: [file.name for file in reversed(FILES[Slot.T5])]}
    assert files(offered)[Slot.T5] == FILES[Slot.T5][0].name


@pytest.mark.parametrize("there", ["flux/ae.safetensors", "flux\\ae.safetensors", "ae.safetensors"])
@pytest.mark.parametrize("name", ["ae.safetensors", "flux/ae.safetensors", "flux\\ae.safetensors"])
def test_subfolders_are_found_on_any_system(there, name):
    offered = PUBLISHED | {Slot.VAE: ["not_ae.safetensors", there]}
    found = files(offered, {Slot.VAE: name})[Slot.VAE]
    assert found == (there if there != "ae.safetensors" or name == "ae.safetensors" else None)


def test_all_missing_files_are_named_at_once_with_their_sources():
    with pytest.raises(ModelsMissing) as caught:
        needed(NOTHING | {Slot.VAE: ["ae.safetensors"]}, {}, Slot)
    for slot in Slot:
        file = FILES[slot][0]
        assert (f"{slot.value}: {file.name}" in str(caught.value)) == (slot is not Slot.VAE)
        assert (file.url in str(caught.value)) == (slot is not Slot.VAE)
        assert f"models/{file.folder}" in str(caught.value) or slot is Slot.VAE
    assert "krea-client models download" in str(caught.value)


def test_a_chosen_file_that_is_not_there_is_not_replaced():
    with pytest.raises(ModelsMissing, match=r"mine.safetensors, chosen as FLUX.1 VAE. .* offers: ae.safetensors"):
        needed(PUBLISHED, {Slot.VAE: "mine.safetensors"}, Slot)


def test_both_forms_in_which_hosts_offer_choices_are_read():
    newer = {
        loader: {"input": {"required": {key: ["COMBO", {"options": SMALL[slot]}] for key, slot in inputs.items()}}}
        for loader, inputs in LOADER_INPUTS.items()
    }
    older = {
        loader: {"input": {"required": {key: [SMALL[slot], {}] for key, slot in inputs.items()}}}
        for loader, inputs in LOADER_INPUTS.items()
    }
    assert on_server(newer) == on_server(older) == SMALL
