"""The content filter in the graph: the gate before the sampler, and the gate behind it."""

import json
import logging

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..krea.filters.content_filter import ContentFilter
from ..krea.filters.decision import Decision
from . import desk, node_text
from .content_filter_loader import KreaFilter
from .gate import CANCEL, Form, gate, report, verdicts


class FluxKreaPromptFilter(io.ComfyNode):
    """Judges a prompt before anything is made from it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FluxKreaPromptFilter",
            display_name="Krea Prompt Filter",
            category="Krea",
            description=(
                "Judges the prompt before the sampler. A refused prompt makes no picture; what is found in a prompt "
                "that goes on counts for its pictures, so that they wait for review."
            ),
            search_aliases=["nsfw", "moderation", "prompt check", "safety"],
            inputs=[
                KreaFilter.Input("filter", tooltip="Who judges, from Krea Content Filter Loader."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows. Wire the output of the same name to Krea Prompt.",
                ),
                io.String.Input(
                    "negative_prompt",
                    optional=True,
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What to keep out of the picture; goes on as it is. It is not judged: it names what is "
                    "not wanted.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The prompt, unless it is refused."),
                io.String.Output(display_name="negative_prompt", tooltip="The negative prompt."),
                KreaFilter.Output(
                    display_name="filter",
                    tooltip="For Krea Content Filter or Krea Save: the filter that knows what was found in the prompt.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            # An output, so that ComfyUI tells the verdict again when the node's result is taken from its cache.
            is_output_node=True,
        )

    @classmethod
    def execute(cls, filter: ContentFilter, prompt: str, negative_prompt: str = "") -> io.NodeOutput:
        verdict = filter.judge_prompt([prompt], CANCEL)
        try:
            key = desk.audit_log().prompt_key(prompt)
            desk.record("prompt", verdict, prompt=key)
        except (OSError, ValueError) as error:
            # Raised, ComfyUI would send the prompt along with the error.
            text = f"The prompt goes no further, since what was found cannot be recorded: {error}"
            logging.error("Krea Prompt Filter: %s", text)
            return io.NodeOutput(*[ExecutionBlocker(text)] * 3, ui={"text": [text]})
        if verdict.decision is Decision.PASS:
            text = "The prompt passes the content filter."
        elif verdict.decision is Decision.REVIEW:
            text = "The prompt's pictures need review. " + " ".join(verdict.reasons)
        else:
            text = "The prompt is refused. " + " ".join(verdict.reasons)
        node_text.show(text, cls.hidden.unique_id)
        ui = {"text": [text], "verdicts": [desk.described(verdict)]}
        if verdict.decision is Decision.BLOCK:
            return io.NodeOutput(*[ExecutionBlocker(text)] * 3, ui=ui)
        return io.NodeOutput(prompt, negative_prompt, filter.with_prompt(verdict, key), ui=ui)


class FluxKreaContentFilter(io.ComfyNode):
    """The gate in the middle of a graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FluxKreaContentFilter",
            display_name="Krea Content Filter",
            category="Krea",
            description=(
                "Judges every picture of a batch. What passes goes on, in order; what is flagged is held for review, "
                "blurred or blocked, as Krea Content Filter Loader says. To save, Krea Save has this built in and "
                "cannot be wired around."
            ),
            search_aliases=["nsfw", "moderation", "safety checker", "gate"],
            inputs=[
                KreaFilter.Input(
                    "filter", tooltip="Who judges, from Krea Content Filter Loader or Krea Prompt Filter."
                ),
                io.Image.Input("images", tooltip="The pictures to judge."),
                io.String.Input(
                    "filename_prefix",
                    optional=True,
                    default=desk.PREFIX,
                    tooltip="The name that a picture held for review gets in the output folder once it is approved. It "
                    "then is a PNG marked as made by AI, without prompt and workflow; Krea Save holds pictures in the "
                    "form that it would have saved.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The pictures that pass, and the blurred ones. Where there are none, what follows does not "
                    "run.",
                ),
                io.String.Output(display_name="report", tooltip="What became of each picture, in words."),
                io.String.Output(display_name="verdicts", tooltip="The verdict about each picture, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return desk.prefix_trouble(filename_prefix) or True

    @classmethod
    def execute(cls, filter: ContentFilter, images: torch.Tensor, filename_prefix: str = desk.PREFIX) -> io.NodeOutput:
        results = gate(filter, images, Form(desk.checked_prefix(filename_prefix), metadata={}))
        text, found = report(results), verdicts(results)
        node_text.show(text, cls.hidden.unique_id)
        shown = [one.picture for one in results if one.picture is not None]
        passed = torch.stack(shown) if shown else ExecutionBlocker(text)
        return io.NodeOutput(passed, text, json.dumps(found), ui={"text": [text], "verdicts": found})
