"""README.md quotes messages and names files: both must be the real ones."""

import re

import pytest

from dev.environment import ROOT
from krea import VERSION

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
