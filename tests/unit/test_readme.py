"""README.md quotes messages and names files: both must be the real ones."""

import json
import re

import jsonschema
import pytest

from dev.environment import ROOT
from krea import VERSION
from krea_client.request import Request, schema

README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(
    path.read_text(encoding="utf-8") for folder in ("krea", "nodes") for path in sorted((ROOT / folder).rglob("*.py"))
)
# Messages as the code writes them: adjacent string literals joined.
JOINED = re.sub(r'"\s*\n\s*f?"', "", CODE)
COMFYUIS_OWN = "mat1 and mat2 shapes cannot be multiplied"


def quoted_messages() -> list[str]:
    return re.findall(r"^\*\*`(.+?)`\*\*", README, re.MULTILINE)


@pytest.mark.parametrize("message", quoted_messages())
def test_faq_quotes_messages_that_the_code_can_write(message):
    if message == COMFYUIS_OWN:
        return
    # What stands between the parts that change: file names, folders, numbers, another message, "...".
    changing = r"\.\.\.|[\w.-]+\.safetensors|models/\w+|(?<![.\w])\d[\d.,]*|, not the .*? Expected:"
    parts = [part.strip(" .,:;").removeprefix("is ") for part in re.split(changing, message)]
    fixed = [part for part in parts if len(part) > 12]
    assert fixed
    assert [part for part in fixed if part not in JOINED] == []


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http|#)[^)]+)\)", README))
def test_links_lead_to_files_of_the_checkout(target):
    assert (ROOT / target).exists()


def test_the_version_is_that_of_pyproject():
    assert f'\nversion = "{VERSION}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def example_requests() -> list[str]:
    return [line for line in README.splitlines() if line.startswith(('{"prompt"', '{"image_prompt"'))]


def test_there_are_examples_of_requests():
    assert len(example_requests()) >= 5


@pytest.mark.parametrize("line", example_requests())
def test_example_requests_are_ones_for_the_schema_and_for_the_client(line):
    jsonschema.validate(json.loads(line), schema(), jsonschema.Draft202012Validator)
    assert Request.read(json.loads(line)).values() == json.loads(line)
