"""Krea Prompt: the artist's words, read as the two text encoders of FLUX.1 Krea [dev] were trained to read."""

import logging
import re
from typing import Any
from weakref import WeakKeyDictionary

from comfy_api.latest import io

from ..krea.prompting import CHOICES, NONE, compose
from ..krea.recipe import T5_TOKENS
from . import node_text

CHOICE_TOOLTIPS = {
    "use_case": "The kind of photograph: sets the pose, the setting and how arranged everything looks.",
    "camera": "Camera and lens: sets the perspective, how wide the view is and how soft the background gets.",
    "film": "The film stock: sets colour, contrast and grain.",
    "lighting": "Where the light comes from and how hard it is: sets shadows, mood and time of day.",
    "composition": "Where the subject stands in the frame and from where it is seen.",
}


class FluxKreaPrompt(io.ComfyNode):
    """Encodes a prompt and a negative prompt for FLUX.1 Krea [dev]."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FluxKreaPrompt",
            display_name="Krea Prompt",
            category="Krea",
            description=(
                "Turns your words into what FLUX.1 Krea [dev] paints. Write plain sentences about light, "
                "materials and framing; the photography choices add a sentence each. Parentheses are ordinary "
                "text, not weights."
            ),
            search_aliases=["flux prompt", "krea dev", "clip text encode", "photography", "camera", "film"],
            inputs=[
                io.Clip.Input("clip", tooltip="The two text encoders from Krea Model Loader."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows, in sentences. Name the light, the materials and the framing; "
                    "leave out words like 'masterpiece' or '8k'. {red|blue} picks one of the two at each run.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    optional=True,
                    default="",
                    tooltip="What to keep out of the picture. Acts only when true CFG in Krea Sampler is above 1.",
                ),
                io.Boolean.Input(
                    "texture_enhancement",
                    optional=True,
                    default=True,
                    tooltip="Asks for realistic textures, natural light and an unprocessed look. Switch it off for "
                    "drawings, paintings and clean graphics.",
                ),
                *(
                    io.Combo.Input(
                        name,
                        options=[NONE, *sentences],
                        default=NONE,
                        optional=True,
                        tooltip=f"{CHOICE_TOOLTIPS[name]} Adds one sentence to the prompt; 'none' adds nothing.",
                    )
                    for name, sentences in CHOICES.items()
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="What the picture shows, for Krea Sampler."),
                io.Conditioning.Output("negative", tooltip="What to keep out, for Krea Sampler."),
                io.String.Output("text", tooltip="The whole prompt as it was read, with the added sentences."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        prompt: str,
        negative_prompt: str = "",
        texture_enhancement: bool = True,
        **choices: str,
    ) -> io.NodeOutput:
        """Texture enhancement and choices are added to the positive prompt only."""
        text = compose(prompt, texture_enhancement=texture_enhancement, **choices)
        positive, report = encode(clip, text, "Prompt")
        negative, negative_report = encode_negative(clip, negative_prompt)
        if negative_prompt.strip():
            report = f"{report}\n{negative_report}"
        node_text.show(report, cls.hidden.unique_id)
        return io.NodeOutput(positive, negative, text, ui={"text": [report]})


# The negative stays while the prompt is edited, and T5 takes as long over "" as over a page: the last one is kept.
_last_negative: WeakKeyDictionary[Any, tuple[str, tuple[list, str]]] = WeakKeyDictionary()


def encode_negative(clip: Any, text: str) -> tuple[list, str]:
    """As `encode`; the same text on the same CLIP again is not encoded again."""
    if clip is None or _last_negative.get(clip, (None,))[0] != text:
        encoded = encode(clip, text, "Negative prompt")
        _last_negative[clip] = text, encoded
    return _last_negative[clip][1]


def encode(clip: Any, text: str, label: str) -> tuple[list, str]:
    """Encode as Black Forest Labs' and diffusers' pipelines do: T5 padded and cut to 512, CLIP-L cut to 77.

    Returns the conditioning and a line, opened by `label`, that says how many tokens each encoder read.
    For a prompt that fits it is bit for bit what CLIPTextEncode makes after T5TokenizerOptions (512).

    Raises ValueError when `clip` does not hold exactly the two encoders of FLUX.1.
    """
    if clip is None:
        raise ValueError("No text encoders arrived. Connect the CLIP output of Krea Model Loader.")
    # Asked with no options first: the tokenizers of other families do not take the ones below.
    encoders = set(clip.tokenize(""))
    if encoders != {"l", "t5xxl"}:
        raise ValueError(
            f"These text encoders are {', '.join(sorted(encoders))}. FLUX.1 Krea [dev] reads with CLIP-L and T5-XXL "
            "(l, t5xxl): connect the CLIP output of Krea Model Loader, or of DualCLIPLoader with type flux."
        )
    tokens = clip.tokenize(
        as_plain_text(text),
        return_word_ids=True,
        disable_weights=True,
        tokenizer_options={"t5xxl_min_padding": 0, "t5xxl_min_length": T5_TOKENS},
    )
    [t5_tokens], clip_l_chunks = tokens["t5xxl"], tokens["l"]

    t5_written = _word_tokens(t5_tokens) + 1  # the end mark
    clip_l_written = sum(map(_word_tokens, clip_l_chunks)) + 2  # the start and end marks
    clip_l_read = _word_tokens(clip_l_chunks[0]) + 2
    report = _reading_report(label, t5_written, clip_l_read, clip_l_written)
    if t5_written > T5_TOKENS:
        logging.warning(report)
    elif clip_l_written > clip_l_read:
        logging.info(report)

    read = {
        # A cut keeps the end mark, as the tokenizers of the pipelines do.
        "t5xxl": [t5_tokens[: T5_TOKENS - 1] + t5_tokens[-1:]],
        # Only the pooled vector of the first chunk reaches the model.
        "l": clip_l_chunks[:1],
    }
    pairs = {
        name: [[(token, weight) for token, weight, _ in chunk] for chunk in chunks] for name, chunks in read.items()
    }
    return clip.encode_from_tokens_scheduled(pairs), report


def as_plain_text(text: str) -> str:
    """The text in the form in which ComfyUI's tokenizer reads every character of it as written."""
    # A backslash before a parenthesis is taken for an escape, and the keyword of an embedding needs a name after it.
    text = text.replace("\\(", "\\\\(").replace("\\)", "\\\\)")
    return re.sub(r"(?<!\S)embedding:(?!\S)", "embedding :", text)


def _word_tokens(chunk: list[tuple]) -> int:
    return sum(word_id != 0 for *_, word_id in chunk)


def _reading_report(label: str, t5_written: int, clip_l_read: int, clip_l_written: int) -> str:
    if t5_written > T5_TOKENS:
        t5 = f"T5 reads the first {T5_TOKENS} of {t5_written} tokens; the rest of the text does nothing, so shorten it"
    else:
        t5 = f"T5 reads all {t5_written} tokens (up to {T5_TOKENS})"
    if clip_l_written > clip_l_read:
        clip_l = (
            f"CLIP-L reads the first {clip_l_read} of {clip_l_written}, which is usual: it gives only the overall "
            "impression"
        )
    else:
        clip_l = f"CLIP-L all {clip_l_written}"
    return f"{label}: {t5}. {clip_l}."
