"""What tools from outside the project say of the pack as it is published."""

import json

import pytest

from dev.environment import ROOT
from krea.model_file import catalogue

WORKFLOWS = sorted([*ROOT.glob("workflows/*.json"), *ROOT.glob("workflows/api/*.json")])
NOT_PUBLISHED = ("dev", "tests", "models", ".ci", ".gitignore", ".comfyignore")


def test_published_archive_holds_the_pack_and_nothing_else(published):
    assert not [name for name in NOT_PUBLISHED if (published / name).exists()]
    assert not list(published.rglob("*.safetensors"))
    for name in ("__init__.py", "nodes", "krea", "web", "workflows", "locales", "subgraphs", "pyproject.toml"):
        assert (published / name).exists(), name
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "requirements.txt"):
        assert (published / name).is_file(), name


def test_registry_rules(published, tool):
    done = tool(published, "comfy", "node", "validate")
    assert done.returncode == 0, done.stdout
    assert "All validation checks passed" in done.stdout, done.stdout
    assert "warning" not in done.stdout.lower(), done.stdout


@pytest.fixture(scope="module")
def stocked_machine(server, tmp_path_factory):
    """The nodes as a machine reports them that has the published model files in its folders."""
    nodes = server.object_info()
    names = {file.name for files in catalogue.FILES.values() for file in files}
    for loader, files in (
        ("FluxKreaModelLoader", ("diffusion_model", "text_encoder_1", "text_encoder_2", "vae")),
        ("FluxKreaStyleModelLoader", ("vision_encoder", "adapter")),
    ):
        inputs = nodes[loader]["input"]["required"]
        for name in files:
            options = inputs[name][0] if isinstance(inputs[name][0], list) else inputs[name][1]["options"]
            options.extend(names)
    path = tmp_path_factory.mktemp("nodes") / "object_info.json"
    path.write_text(json.dumps(nodes), encoding="utf-8")
    return path


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: str(path.relative_to(ROOT / "workflows")))
def test_workflow_is_valid(workflow, stocked_machine, tool):
    done = tool(ROOT, "comfy", "--json", "workflow", "validate", "--workflow", workflow, "--input", stocked_machine)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"], found["error"]
    assert not found["data"]["warnings"]


def test_workflow_validator_sees_a_wrong_value(stocked_machine, tool, tmp_path):
    graph = json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text(encoding="utf-8"))
    next(node for node in graph.values() if node["class_type"] == "FluxKreaSampler")["inputs"]["steps"] = 1_000
    (tmp_path / "wrong.json").write_text(json.dumps(graph))
    done = tool(
        tmp_path, "comfy", "--json", "workflow", "validate", "--workflow", "wrong.json", "--input", stocked_machine
    )
    assert not json.loads(done.stdout.splitlines()[-1])["ok"]


def test_lint(published, tool):
    done = tool(published, "comfy-test", "lint", ".", "--strict")
    assert done.returncode == 0, done.stdout


def test_every_node_is_in_a_workflow(published, tool, server, tmp_path):
    # comfy-test reads V1 mappings only; the server's own list of our nodes stands in for them.
    ours = {name: None for name in server.object_info() if name.startswith("FluxKrea")}
    (tmp_path / "__init__.py").write_text(f"NODE_CLASS_MAPPINGS = {ours}\n")
    done = tool(tmp_path, "comfy-test", "coverage", ".", "--strict", "--workflows", published / "workflows")
    assert done.returncode == 0, done.stdout
    assert f"{len(ours)}" in done.stdout


def test_no_hazards(published, tool, tmp_path):
    (tmp_path / "comfy-test.toml").write_text('[test]\nlevels = ["warnings", "hazards"]\n')
    done = tool(published, "comfy-test", "run", "-c", tmp_path / "comfy-test.toml", "-l", "hazards", ".")
    assert done.returncode == 0, done.stdout
    assert "Warnings check: clean" in done.stdout, done.stdout
    assert "Hazards check: clean" in done.stdout, done.stdout


def test_security_scan(published, tool):
    done = tool(published, "nodesafe", "scan", ".", "--format", "json")
    findings = json.loads(done.stdout)["findings"]
    unexplained = [each for each in findings if not is_readable(each)]
    assert not unexplained, "\n".join(f"{each['file']}:{each['line']}: {each['title']}" for each in unexplained)


# What the scanner's patterns match inside of: words that are none of the functions it looks for.
HARMLESS = {"ord(": "record(", "compile(": "re.compile(", "eval(": ".eval()"}


def is_readable(finding):
    """The scanner looks for names of functions inside of longer ones, and takes long text for an encoded payload.

    The latter by its entropy alone: sentences and download addresses.
    """
    pattern = finding["title"].partition("pattern `")[2].removesuffix("` matched")
    if pattern in HARMLESS:
        line = (ROOT / finding["file"]).read_text(encoding="utf-8").splitlines()[finding["line"] - 1]
        return pattern not in line.replace(HARMLESS[pattern], "")
    preview = finding["explanation"].partition("Preview: ")[2]
    text = " " in preview or finding["file"] == "krea/model_file/catalogue.py"
    return finding["category"] == "code_obfuscation_high_entropy" and text
