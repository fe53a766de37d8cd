"""Krea Save: gate, disclosure and saving in one node, so that no wire leads from a flagged picture to the disk."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..krea import VERSION, files
from ..krea.filters.content_filter import ContentFilter
from ..krea.picture_file import DISCLOSURES, SUFFIXES
from . import desk, node_text
from .content_filter_loader import KreaFilter
from .gate import DISCLOSED, Form, Judged, gate, metadata_of, report, verdicts


class FluxKreaSaveImage(io.ComfyNode):
    """Saves what passes the filter, marked as made by AI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FluxKreaSaveImage",
            display_name="Krea Save",
            category="Krea",
            description=(
                "Judges every picture and saves those that pass, marked as made by AI. A flagged picture is never "
                "written to the output or temp folder; a held one waits in the tab Krea Review."
            ),
            search_aliases=["save image", "nsfw", "disclosure", "xmp", "iptc", "content credentials"],
            inputs=[
                KreaFilter.Input(
                    "filter", tooltip="Who judges, from Krea Content Filter Loader or Krea Prompt Filter."
                ),
                io.Image.Input("images", tooltip="The pictures to judge and save."),
                io.String.Input(
                    "filename_prefix",
                    optional=True,
                    default=desk.PREFIX,
                    tooltip="The beginning of the files' names; may hold a subfolder, and %year%, %month%, %day%, "
                    "%width% and %height%.",
                ),
                io.Combo.Input(
                    "file_format",
                    optional=True,
                    display_name="format",
                    options=list(SUFFIXES),
                    default="png",
                    tooltip="PNG keeps every pixel and the workflow; JPEG and WebP are smaller.",
                ),
                io.Int.Input(
                    "quality",
                    optional=True,
                    default=95,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Of JPEG and WebP: less is smaller and blurs fine texture. PNG has no loss at any value.",
                ),
                io.Combo.Input(
                    "disclosure",
                    optional=True,
                    options=list(DISCLOSURES),
                    default="made by AI",
                    advanced=True,
                    tooltip="What the file says of its making, for machines (IPTC digital source type). 'edited by "
                    "AI' is for a photograph that was painted over. The law of many places asks for a mark.",
                ),
                io.Boolean.Input(
                    "keep_workflow",
                    optional=True,
                    display_name="keep workflow",
                    default=True,
                    advanced=True,
                    tooltip="Write prompt and workflow into the file, so that it can be opened in ComfyUI. Off keeps "
                    "them private; the mark of AI stays.",
                ),
                io.Boolean.Input(
                    "label",
                    optional=True,
                    display_name="visible label",
                    default=False,
                    advanced=True,
                    tooltip='Draw "AI-generated" into the lower right corner of the picture.',
                ),
                io.Boolean.Input(
                    "content_credentials",
                    optional=True,
                    display_name="content credentials",
                    default=False,
                    advanced=True,
                    tooltip="Sign the file (C2PA), so that a change of the picture or of its mark is found. Needs the "
                    "package c2pa-python. The certificate is made on this computer, or is yours.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="What became of each picture, in words.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        filename_prefix: str | None = None,
        disclosure: str | None = None,
        label: bool | None = None,
        content_credentials: bool | None = None,
    ) -> bool | str:
        """What would fail only after the pictures are made; None is what comes by a wire."""
        if trouble := desk.prefix_trouble(filename_prefix):
            return trouble
        if disclosure is not None and disclosure not in DISCLOSURES:
            return f"The disclosure is {disclosure!r}. Expected one of {', '.join(DISCLOSURES)}."
        if disclosure is not None and DISCLOSURES[disclosure] is None and (label or content_credentials):
            return (
                "A visible label and content credentials say that AI made the picture, and the disclosure is none. "
                "Choose another disclosure, or switch both off."
            )
        return True

    @classmethod
    def execute(
        cls,
        filter: ContentFilter,
        images: torch.Tensor,
        filename_prefix: str = desk.PREFIX,
        file_format: str = "png",
        quality: int = 95,
        disclosure: str = "made by AI",
        keep_workflow: bool = True,
        label: bool = False,
        content_credentials: bool = False,
    ) -> io.NodeOutput:
        mark = replace(DISCLOSED, source_type=DISCLOSURES[disclosure], keep_metadata=keep_workflow, label=label)
        signer = desk.credentials() if content_credentials else None
        form = Form(desk.checked_prefix(filename_prefix), metadata_of(cls.hidden), mark, file_format, quality, signer)
        results = gate(filter, images, form)
        text, found, shown = report(results), verdicts(results), []
        for one, verdict in zip(results, found, strict=True):
            if one.picture is not None:
                path, verdict["sha256"] = save(one, form)
                shown.append(_shown(path))
        node_text.show(text, cls.hidden.unique_id)
        return io.NodeOutput(text, ui={"images": shown, "text": [text], "verdicts": found})


def _shown(path: Path) -> dict[str, str]:
    """A saved picture as ComfyUI's frontend and API name it."""
    folder = path.parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": path.name, "subfolder": "" if folder == "." else folder, "type": "output"}


def save(judged: Judged, form: Form) -> tuple[Path, str]:
    """Write a picture under a name that is free; the audit record knows its bytes before they are on the disk.

    Returns its path and the SHA-256 of its bytes. Raises OSError, which the record knows, too.
    """
    data, notes = form.encoded(judged.picture)
    for note in notes:
        logging.warning("Krea Save: %s", note)
    sha256 = hashlib.sha256(data).hexdigest()
    source_type = form.disclosure.source_type
    known = {"pack": VERSION, "picture": judged.id, "sha256": sha256}
    desk.audit_log().append("saved", **known, disclosure=source_type.value if source_type else "none")
    height, width, _ = judged.picture.shape
    try:
        while True:
            path = desk.free_path(form.prefix, SUFFIXES[form.file_format], width, height)
            try:
                files.create(path, data)
            except FileExistsError:  # another job took the name
                continue
            return path, sha256
    except OSError as error:
        desk.audit_log().append("not saved", **known, error=type(error).__name__)
        raise
