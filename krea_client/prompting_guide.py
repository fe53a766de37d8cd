"""How to ask FLUX.1 Krea [dev] for a picture, for language models and for people; the words are those of the nodes."""

from __future__ import annotations

from krea.prompting import CHOICES, compose

from .request import Request
from .tool import NAME

_EXAMPLE = compose(
    "A net mender of about sixty sits on an upturned crate on a wet stone quay and pulls a green cord tight with his "
    "teeth. His wool jumper is darned at both elbows, and fish scales stick to his sleeves.",
    texture_enhancement=False,
    camera="35mm f/2 full-frame",
    lighting="overcast",
)
_SETTINGS = ("guidance_scale", "true_cfg_scale", "style_reference_weight", "texture_enhancement", "seed")


def guide() -> str:
    """The prompting guide, as Markdown."""
    settings = "\n".join(f"- `{name}`: {Request.model_fields[name].description}" for name in _SETTINGS)
    choices = "\n\n".join(
        f"### {name.replace('_', ' ').capitalize()}\n" + "\n".join(f"- {key}: {text}" for key, text in keys.items())
        for name, keys in CHOICES.items()
    )
    return f"""# Prompting FLUX.1 Krea [dev]

Describe one photograph that could have been taken, in two to six plain sentences, the most important first:

1. Who or what is seen, and what it does at that moment, with one or two particulars: a darned elbow, chipped enamel.
2. Where and when.
3. The light: where it comes from, how hard it is, what colour it has.
4. The lens, the distance, and what is sharp.
5. What the surfaces are made of, and how they are worn.

The model reads prose. Quality words ("masterpiece, 8k, ultra detailed") and weights such as (word:1.3) do nothing good.
Say what is there: "an empty street", not "a street without people".

Example: {_EXAMPLE}

## Settings
{settings}

## Sentences that can be taken as they are
At most one of each kind, after your own.

{choices}
"""


def photograph(subject: str, mood: str = "", **choices: str) -> str:
    """What to tell a language model that shall make a photograph of a subject.

    choices: for any of `krea.prompting.CHOICES` one of its keys. Raises ValueError for another.
    """
    sentences = compose("", texture_enhancement=False, **choices)
    lines = [
        f"Make a photograph. Write its prompt by the guide below, then call {NAME} with it.",
        f"Subject: {subject}",
        mood and f"Mood: {mood}. Let light, weather and gesture show it; do not name it.",
        sentences and f"End the prompt with these sentences, as they are: {sentences}",
    ]
    return "\n".join(filter(None, lines)) + "\n\n" + guide()
