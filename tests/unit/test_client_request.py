"""The request: its ranges, its defaults, its schema and what it says of a wrong field."""

import jsonschema
import pytest

from krea_client import Request, StyleReference, schema
from krea_client.errors import InvalidRequest

VALIDATOR = jsonschema.Draft202012Validator(schema())
EDGES = {  # field -> least, greatest, a step beyond
    "guidance_scale": (1.0, 10.0, 0.01),
    "true_cfg_scale": (1.0, 10.0, 0.01),
    "num_inference_steps": (15, 50, 1),
    "num_images": (1, 4, 1),
    "seed": (0, 2**64 - 1, 1),
    "style_reference_weight": (0.1, 1.0, 0.01),
    "megapixels": (0.0625, 4.0, 0.001),
}
WRONG = [
    *({field: least - step} for field, (least, _, step) in EDGES.items()),
    *({field: greatest + step} for field, (_, greatest, step) in EDGES.items()),
    *({field: "much"} for field in EDGES),
    {"num_inference_steps": 28.5},
    {"num_images": 1.5},
    {"aspect_ratio": "21:9"},
    {"resolution": "2K"},
    {"output_format": "gif"},
    {"disclosure": "drawn by hand"},
    {"content_filter": "none"},
    {"prompt": 5},
    {"image_prompt": ""},
    {"style_references": "a.png"},
    {"style_references": [{"image": f"{number}.png"} for number in range(4)]},
    {"style_references": [{"weight": 0.5}]},
    {"style_references": [{"image": "a.png", "weight": 0.05}]},
    {"style_references": [{"image": "a.png", "weight": 1.05}]},
    {"style_references": [{"image": "a.png", "strength": 0.5}]},
    {"guidance": 4.5},
    {"texture_enhancement": "perhaps"},
    {"style_references": [5]},
]


def test_defaults_are_the_recipe():
    assert Request(prompt="x").model_dump() == {
        "prompt": "x",
        "negative_prompt": "",
        "aspect_ratio": "3:2",
        "resolution": "1.5K",
        "megapixels": None,
        "guidance_scale": 4.5,
        "true_cfg_scale": 1.0,
        "num_inference_steps": 28,
        "seed": None,
        "num_images": 1,
        "style_references": (),
        "style_reference_weight": 0.7,
        "image_prompt": None,
        "texture_enhancement": True,
        "output_format": "png",
        "disclosure": "made by AI",
        "content_filter": "judge",
    }


@pytest.mark.parametrize("field", EDGES)
def test_the_edges_of_a_range_are_taken(field):
    for value in EDGES[field][:2]:
        values = {"prompt": "x", field: value}
        VALIDATOR.validate(values)
        assert getattr(Request.read(values), field) == value


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_the_model_refuses_the_schema_refuses_too(wrong):
    values = {"prompt": "x", **wrong}
    assert not VALIDATOR.is_valid(values)
    with pytest.raises(InvalidRequest) as caught:
        Request.read(values)
    [field] = wrong
    assert str(caught.value).startswith(field)
    for word in ("Input should", "valid", "tuple", "dictionary", "instance", "required", "String"):
        assert word not in str(caught.value), "words of Python"


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_images": 1.5}, "num_images: found 1.5. Expected a whole number, at least 1 and at most 4."),
        ({"seed": -1}, f"seed: found -1. Expected a whole number, at least 0 and below {2**64}."),
        ({"resolution": "2K"}, "resolution: found '2K'. Expected one of 1K, 1.5K, 4K."),
        ({"style_references": "a.png"}, "style_references: found 'a.png'. Expected a list, its length at most 3."),
        ({"style_references": [5]}, "style_references.0: found 5. Expected an object with the fields image, weight."),
        ({"style_references": [{}]}, "style_references.0.image: it is missing. Expected text, its length at least 1."),
        (
            {"style_references": [{"image": "a.png", "strength": 1}]},
            "style_references.0.strength: there is no such field. The fields are image, weight.",
        ),
    ],
    ids=str,
)
def test_a_wrong_field_is_told_in_words_of_people(wrong, message):
    with pytest.raises(InvalidRequest) as caught:
        Request.read({"prompt": "x", **wrong})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "a \ud83d"},
        {"negative_prompt": "a \ud83d"},
        {"image_prompt": "\udcff.png"},
        {"style_references": ["\udcff.png"]},
    ],
    ids=ascii,
)
def test_half_a_character_is_refused(values):
    [field] = values
    with pytest.raises(InvalidRequest, match=rf"^{field}.*\\ud.*lone surrogate.*Expected text in Unicode\.$") as caught:
        Request.read({"prompt": "x", **values})
    str(caught.value).encode()


def test_schema_is_flat_and_has_a_sentence_for_every_field():
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    fields = whole["properties"] | whole["properties"]["style_references"]["items"]["properties"]
    assert set(fields) == {*Request.model_fields, *StyleReference.model_fields}
    for name, field in fields.items():
        assert field["description"].endswith("."), name
    assert not any(word in str(whole) for word in ("$ref", "anyOf", "'null'", "None"))
    assert whole["additionalProperties"] is False


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "x"},
        {"prompt": "x", "style_references": [{"image": "a.png"}, {"image": "https://b/c.jpg", "weight": 0.3}]},
        {"image_prompt": "data:image/png;base64,AA=="},
        {"prompt": "x", "content_filter": "off", "disclosure": "none"},
    ],
    ids=str,
)
def test_a_request_written_down_is_the_same_request(values):
    request = Request.read(values)
    VALIDATOR.validate(request.values())
    assert Request.read(request.values()) == request and request.values() == values


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "prompt is empty. Say what the picture shows"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "x", "content_filter": "off"}, "Set output_format to 'png' and disclosure to 'none'"),
        ({"prompt": "x", "content_filter": "off", "output_format": "webp", "disclosure": "none"}, "'webp'"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_together_are_refused(values, message):
    with pytest.raises(InvalidRequest, match=message):
        Request.read(values)


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(InvalidRequest) as caught:
        Request.read({"prompt": "x", "seed": -1, "num_images": 5, "steps": 20})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["seed", "num_images", "steps"]
    assert "num_inference_steps" in str(caught.value), "the fields that there are"


def test_sizes_are_those_of_the_nodes():
    assert Request(prompt="x").frame.final_size == (1872, 1248)
    four_k = Request(prompt="x", aspect_ratio="16:9", resolution="4K").frame
    assert (four_k.size, four_k.upscale_factor) == ((1360, 768), 4)
    assert Request(prompt="x", aspect_ratio="1:1", megapixels=0.0625).frame.final_size == (256, 256)


def test_image_i_has_seed_plus_i():
    assert Request(prompt="x", seed=2**64 - 2, num_images=3).seeds == [2**64 - 2, 2**64 - 1, 0]


@pytest.mark.parametrize(
    "text, image, weight",
    [
        ("a.png", "a.png", None),
        ("a.png@0.4", "a.png", 0.4),
        ("a.png@.4", "a.png", 0.4),
        ("a@2x.png", "a@2x.png", None),
        ("https://me@host/a.png", "https://me@host/a.png", None),
        ("a@b@1", "a@b", 1.0),
    ],
)
def test_a_style_reference_may_be_written_as_text(text, image, weight):
    assert StyleReference.model_validate(text) == StyleReference(image=image, weight=weight)


def test_a_reference_without_a_weight_takes_the_common_one():
    request = Request(prompt="x", style_references=["a.png", "b.png@0.3"], style_reference_weight=0.5)
    assert request.weights == [0.5, 0.3] and request.images == ["a.png", "b.png"]
