"""What the demo does around the run: files, names, graphs and words."""

import json
import subprocess
import sys
import threading

import pytest

from dev import __main__ as tools
from dev import client, demo, small_model, suite
from krea.model_file import catalogue


@pytest.fixture
def shipped():
    return json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))


def changed_inputs(before, after):
    names = set()
    for node_id, node in after.items():
        for name, value in node["inputs"].items():
            if before[node_id]["inputs"].get(name) != value:
                names.add((node["class_type"], name))
    return names


def test_small_model_changes_files_and_size_and_nothing_else(shipped):
    small = small_model.for_small_model(shipped)
    assert shipped == json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    assert small.keys() == shipped.keys()
    allowed = {(node, name) for node, inputs in small_model.INPUTS.items() for name in inputs}
    changed = changed_inputs(shipped, small)
    assert changed <= allowed
    assert {name for node, name in changed if node == demo.LOADER} == set(small_model.INPUTS[demo.LOADER])


def test_own_models_are_found_anywhere_below_the_folder(shipped, tmp_path):
    wanted = [value for value in demo.node(shipped, demo.LOADER).values() if str(value).endswith(".safetensors")]
    for number, name in enumerate(wanted):
        (tmp_path / f"folder{number}").mkdir()
        (tmp_path / f"folder{number}" / name).touch()
    found = demo.use_files(shipped, tmp_path)
    assert {(folder, file.name) for folder, file in found} == {
        (file.folder, file.name) for files in catalogue.FILES.values() for file in files if file.name in wanted
    }
    assert all(file.is_file() for _, file in found)


def test_another_published_form_of_a_model_is_used_and_named_in_the_graph(shipped, tmp_path):
    for file in (catalogue.KREA_BF16, catalogue.CLIP_L, catalogue.T5_FP16, catalogue.AE):
        (tmp_path / file.name).touch()
    demo.use_files(shipped, tmp_path)
    inputs = demo.node(shipped, demo.LOADER)
    assert inputs["diffusion_model"] == catalogue.KREA_BF16.name
    assert catalogue.T5_FP16.name in (inputs["text_encoder_1"], inputs["text_encoder_2"])


def test_every_missing_model_is_named_with_folder_and_address(shipped, tmp_path):
    (tmp_path / "clip_l.safetensors").touch()
    with pytest.raises(demo.MissingModels) as error:
        demo.use_files(shipped, tmp_path)
    message = str(error.value)
    for file in (catalogue.KREA_FP8, catalogue.T5_FP8_SCALED, catalogue.AE):
        assert file.name in message and f"models/{file.folder}" in message and file.url in message
    assert "  clip_l.safetensors" not in message


def test_pictures_are_never_overwritten_even_by_many_at_once(tmp_path):
    contents = [bytes([number]) for number in range(20)]
    threads = [threading.Thread(target=demo.save, args=(content, tmp_path, "krea_7")) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"krea_7_{number:03}.png" for number in range(1, 21)]
    assert sorted(file.read_bytes() for file in files) == contents


def test_refusal_lists_every_node_and_what_is_wrong_with_it():
    answer = {
        "error": {"message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {
            "1": {"class_type": "A", "errors": [{"message": "Value not in list", "details": "vae: 'x' not in []"}]},
            "2": {"class_type": "B", "errors": [{"message": "Too small", "details": "steps"}]},
        },
    }
    message = client._explain(answer, {})
    assert "node 1 (A): Value not in list: vae: 'x' not in []" in message
    assert "node 2 (B): Too small: steps" in message


def test_what_follows_two_dashes_goes_to_pytest():
    assert suite.parse(["browser", "unit", "--", "-k", "unit"]) == (["unit", "browser"], ["-k", "unit"])
    assert suite.parse([]).parts == list(suite.PARTS)


@pytest.mark.parametrize("command", tools.COMMANDS)
def test_help_needs_no_environment(command, monkeypatch, capsys):
    monkeypatch.setattr(tools.sys, "argv", ["dev", command, "--help"])
    monkeypatch.setattr(tools.environment, "prepare", lambda: pytest.fail("installed something to show the help"))
    with pytest.raises(SystemExit):
        tools.main()
    assert f"python3 dev {command}" in capsys.readouterr().out


def test_commands_are_imported_by_the_standard_library_alone(root):
    imports = "; ".join(f"import {module}" for module, _ in tools.COMMANDS.values())
    without_packages = [sys.executable, "-S", "-c", imports]
    subprocess.run(without_packages, cwd=root, check=True)
