"""The request: what one job asks for. The JSON schema, the command line's flags, the LLM tool and the graph follow it.

Numbers and words come from `krea`, so that the client asks for what the nodes take.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from krea import aspect_ratio as sizes
from krea import recipe
from krea.picture_file import DISCLOSURES, SUFFIXES
from krea.seeds import SEED_COUNT, batch_seeds

from .errors import InvalidRequest

if TYPE_CHECKING:
    from typing_extensions import Self

MEGAPIXELS = recipe.Setting(1.0, 0.0625, 4.0)  # 256 px square to 2048 px square
FILTERS = ("judge", "review", "off")
_KINDS = {  # of JSON schema, as messages name them
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
}
_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "its length at least",
    "maxItems": "its length at most",
}


def _whole(value: Any) -> Any:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError(
            "It has half a character in it (a lone surrogate), which no file and no server takes. Expected text in "
            "Unicode"
        ) from None
    return value


Text = Annotated[str, BeforeValidator(_whole)]


class Strict(BaseModel):
    """A value that is not changed once it is made, and that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """A value out of JSON values. Raises InvalidRequest, which names every field that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            whole = _schema(cls)
            raise InvalidRequest("\n".join(_sentence(each, whole) for each in error.errors())) from None


class StyleReference(Strict):
    """A picture whose look the result takes on. Also written as text: the image, or the image, "@" and the weight."""

    image: Text = Field(min_length=1, description="The picture: a path, an http(s) URL or a data URI.")
    weight: float | None = Field(
        default=None,
        ge=recipe.LEAST_STYLE_WEIGHT,
        le=recipe.STYLE_WEIGHT.maximum,
        description="How much it counts beside the other references; by default style_reference_weight.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        image, _, weight = value.rpartition("@")
        if image and re.fullmatch(r"\d*\.?\d+", weight):
            return {"image": image, "weight": float(weight)}
        return {"image": value}


class Request(Strict):
    """One job: a prompt, and how it becomes one to four pictures."""

    prompt: Text = Field(
        default="",
        description="What the picture shows, in plain sentences: subject, place, light, lens, material. Up to 512 "
        "T5 tokens, about 380 words, are read. May be empty with an image_prompt only.",
    )
    negative_prompt: Text = Field(
        default="", description="What to keep out of the picture. It acts only with a true_cfg_scale above 1."
    )
    aspect_ratio: Literal[tuple(sizes.PRESETS)] = Field(
        default=sizes.DEFAULT_RATIO,
        description="Width to height: "
        + ", ".join(f"{ratio} ({preset.meant_for})" for ratio, preset in sizes.PRESETS.items())
        + ".",
    )
    resolution: Literal[sizes.RESOLUTIONS] = Field(
        default=sizes.DEFAULT_RESOLUTION,
        description="How large: 1K has the area of a 1024 px square, 1.5K of a 1536 px square. 4K is painted at 1K, "
        "then each side is enlarged four times.",
    )
    megapixels: float | None = Field(
        default=None,
        ge=MEGAPIXELS.minimum,
        le=MEGAPIXELS.maximum,
        description="An area instead of the resolution, for drafts: 1 is that of a 1024 px square.",
    )
    guidance_scale: float = Field(
        default=recipe.GUIDANCE.default,
        ge=recipe.GUIDANCE.minimum,
        le=recipe.GUIDANCE.maximum,
        description="How closely the picture follows the prompt. Leave it at 4.5: 4 to 5 paints freely and looks "
        "natural, 6 to 8 is more literal and more contrasty.",
    )
    true_cfg_scale: float = Field(
        default=recipe.TRUE_CFG.default,
        ge=recipe.TRUE_CFG.minimum,
        le=recipe.TRUE_CFG.maximum,
        description="1 is off. Above, the negative_prompt acts and each step takes twice the time: use 1.5 to 3, and "
        "only to keep something out.",
    )
    num_inference_steps: int = Field(
        default=recipe.STEPS.default,
        ge=recipe.STEPS.minimum,
        le=recipe.STEPS.maximum,
        description="How many steps the picture is painted in; more than 32 rarely show.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=SEED_COUNT,
        description="The same seed makes the same picture again; image i of a batch has seed + i. By default random.",
    )
    num_images: int = Field(
        default=recipe.BATCH_SIZE.default,
        ge=recipe.BATCH_SIZE.minimum,
        le=recipe.BATCH_SIZE.maximum,
        description="How many pictures are made of the prompt, each with its own seed.",
    )
    style_references: tuple[StyleReference, ...] = Field(
        default=(),
        max_length=recipe.REFERENCES,
        description="Up to three pictures whose look (palette, texture, light) is mixed by weight; the prompt still "
        "says what is shown.",
    )
    style_reference_weight: float = Field(
        default=recipe.STYLE_WEIGHT.default,
        ge=recipe.LEAST_STYLE_WEIGHT,
        le=recipe.STYLE_WEIGHT.maximum,
        description="The weight of every style reference that names none. The greatest weight also sets how hard the "
        "references pull beside the prompt: 0.3 hints, 0.7 gives look and palette, 1.0 overrules much of the prompt.",
    )
    image_prompt: Text | None = Field(
        default=None,
        min_length=1,
        description="A picture (path, http(s) URL or data URI) whose content is followed, not only its look.",
    )
    texture_enhancement: bool = Field(
        default=True,
        description="Add two sentences that ask for real surfaces and natural light. Turn off for drawings.",
    )
    output_format: Literal[tuple(SUFFIXES)] = Field(
        default="png", description="The files' format; png keeps every pixel, jpeg and webp are smaller."
    )
    disclosure: Literal[tuple(DISCLOSURES)] = Field(
        default=next(iter(DISCLOSURES)),
        description="What the file says of its making, for machines (IPTC digital source type). The law of many "
        "places asks for a mark.",
    )
    content_filter: Literal[FILTERS] = Field(
        default="judge",
        description="judge: prompt and pictures are judged on the server, flagged ones are not delivered. review: "
        "every picture waits there for a person. off: no filter and no mark, by ComfyUI's own Save Image; then "
        "the licence's duty to filter or review is yours.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Request:
        if not self.prompt.strip() and self.image_prompt is None:
            raise ValueError("prompt is empty. Say what the picture shows, or give an image_prompt.")
        if self.content_filter == "off" and (self.output_format != "png" or self.disclosure != "none"):
            raise ValueError(
                f"content_filter is off, output_format {self.output_format!r} and disclosure {self.disclosure!r}. "
                "Without the filter ComfyUI's own Save Image writes the files: png, and without a mark. Set "
                "output_format to 'png' and disclosure to 'none', or leave the filter on."
            )
        return self

    def changed(self, **values: Any) -> Request:
        """This request with other values in some fields. Raises InvalidRequest."""
        return self.read(self.values() | values)

    def values(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def frame(self) -> sizes.Frame:
        """The size in px that is painted, and how much it is enlarged afterwards."""
        if self.megapixels is None:
            return sizes.frame(self.aspect_ratio, self.resolution)
        return sizes.frame(self.aspect_ratio, sizes.CUSTOM, custom_megapixels=self.megapixels)

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture, once there is a seed."""
        return batch_seeds(self.seed, self.num_images)

    @property
    def weights(self) -> list[float]:
        """The weight of each style reference."""
        return [self.style_reference_weight if each.weight is None else each.weight for each in self.style_references]

    @property
    def images(self) -> list[str]:
        """Every reference picture that the request names."""
        return [each.image for each in self.style_references] + ([self.image_prompt] if self.image_prompt else [])


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a request: flat, without references or nulls, as LLM tools read it best."""
    return _schema(Request)


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    whole = kind.model_json_schema()
    return _plain(whole, whole.pop("$defs", {}))


def _plain(node: Any, definitions: dict[str, Any], named: bool = False) -> Any:
    """A schema with its references resolved, without titles, and with "may be left out" in place of null."""
    if isinstance(node, list):
        return [_plain(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if named:  # the keys are names of fields, not words of JSON schema
        return {name: _plain(each, definitions) for name, each in node.items()}
    if "$ref" in node:
        return _plain(definitions[node["$ref"].rpartition("/")[2]], definitions)
    node = {key: value for key, value in node.items() if key != "title" and (key, value) != ("default", None)}
    if "anyOf" in node:
        [kind] = [each for each in node.pop("anyOf") if each != {"type": "null"}]
        node |= kind
    return {key: _plain(value, definitions, named=key == "properties") for key, value in node.items()}


def _sentence(error: dict[str, Any], whole: dict[str, Any]) -> str:
    """One of pydantic's findings as a line: which field, what was found, what the schema expects."""
    place = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    if not place:
        return message
    *parents, field = error["loc"]
    around = _at(whole, parents)
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no such field. The fields are {', '.join(around['properties'])}."
    expected = f"Expected {_expected(_at(around, [field]))}"
    if error["type"] == "missing":
        return f"{place}: it is missing. {expected}."
    return f"{place}: found {_short(error['input'])}. {message if error['type'] == 'value_error' else expected}."


def _at(node: dict[str, Any], place: Sequence[str | int]) -> dict[str, Any]:
    """The schema of a field in a schema."""
    for key in place:
        node = node["items"] if isinstance(key, int) else node["properties"].get(key, {})
    return node


def _expected(field: dict[str, Any]) -> str:
    """What a field takes, in words."""
    if "enum" in field:
        return f"one of {', '.join(field['enum'])}"
    if "pattern" in field:
        return f"text of the form {field['pattern']}"
    if "properties" in field:
        return f"an object with the fields {', '.join(field['properties'])}"
    bounds = " and ".join(f"{word} {field[key]}" for key, word in _BOUNDS.items() if key in field)
    return _KINDS[field["type"]] + (f", {bounds}" if bounds else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
