"""Model files: what a server has, what is missing, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from krea.model_file.catalogue import FILES, SMALL_MODEL, ModelFile, Slot

from .errors import ModelsMissing
from .graph import LOADER_INPUTS


class Found(NamedTuple):
    """A slot of the model: the file on the server that fills it, or None, and the published files that would."""

    slot: Slot
    file: str | None
    published: tuple[ModelFile, ...]


def on_server(object_info: Mapping[str, Any]) -> dict[Slot, list[str]]:
    """The files that the loaders' inputs offer, in the server's order, subfolders included."""
    offered = {}
    for loader, inputs in LOADER_INPUTS.items():
        for key, slot in inputs.items():
            kind, *settings = object_info[loader]["input"]["required"][key]
            # Older hosts put the choices in the place of the type.
            offered[slot] = kind if isinstance(kind, list) else settings[0]["options"]
    return offered


def find(offered: Mapping[Slot, list[str]], chosen: Mapping[Slot, str], slots: Iterable[Slot] = Slot) -> list[Found]:
    """The file for each slot: the chosen one, else the first published one that is there, else all of krea-mini."""
    slots = list(slots)
    small = {slot: _named(SMALL_MODEL[slot], offered[slot]) for slot in slots}
    published = {slot: _first([file.name for file in FILES[slot]], offered[slot]) for slot in slots}
    only_small = all(small.values()) and not any(published.values())
    found = []
    for slot in slots:
        if slot in chosen:
            file = _named(chosen[slot], offered[slot])
        else:
            file = small[slot] if only_small else published[slot]
        found.append(Found(slot, file, FILES[slot]))
    return found


def needed(offered: Mapping[Slot, list[str]], chosen: Mapping[Slot, str], slots: Iterable[Slot]) -> dict[Slot, str]:
    """The file for each slot. Raises ModelsMissing, which names everything that is missing."""
    found = find(offered, chosen, slots)
    missing = [each for each in found if each.file is None]
    if not missing:
        return {each.slot: each.file for each in found}
    lines = ["Model files are missing on the server:"]
    for each in missing:
        if each.slot in chosen:
            there = ", ".join(offered[each.slot]) or "none"
            lines.append(f"  {chosen[each.slot]}, chosen as {each.slot.value}. The server offers: {there}")
        else:
            lines.append(f"  {each.slot.value}: {each.published[0]}")
    lines.append("On the server, krea-client models download FOLDER fetches them into its models folder.")
    raise ModelsMissing("\n".join(lines))


def _named(name: str, offered: list[str]) -> str | None:
    """An offered file of this name, in whatever subfolder."""
    tail = "/" + _plain(name)
    return next((file for file in offered if ("/" + _plain(file)).endswith(tail)), None)


def _plain(name: str) -> str:
    return name.replace("\\", "/")  # Windows hosts name subfolders with backslashes


def _first(names: list[str], offered: list[str]) -> str | None:
    return next(filter(None, (_named(name, offered) for name in names)), None)
