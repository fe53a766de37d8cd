"""Krea Prompt in a real ComfyUI: what the encoders are given, and what the node says when they read less."""

import asyncio

import aiohttp
import pytest
import torch
from safetensors.torch import load_file, save_file

from dev import small_model
from dev.client import PromptRejected, RunFailed
from krea.prompting import CHOICES, compose


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


SMALL_MODEL = small_model.INPUTS["FluxKreaModelLoader"]
LOADER = node("FluxKreaModelLoader", **SMALL_MODEL, weight_dtype="default", verify_hash=False)


def ours(prompt, **inputs):
    return node("FluxKreaPrompt", **{"clip": ["loader", 1], "prompt": prompt, "texture_enhancement": False, **inputs})


@pytest.fixture
def latent(server):
    """Samples two steps with true CFG, so that both conditionings count; the latent that comes out."""

    def run(positive, negative, **nodes):
        graph = {
            "loader": LOADER,
            "t5": node("T5TokenizerOptions", clip=["loader", 1], min_padding=0, min_length=512),
            "empty": node("EmptySD3LatentImage", width=32, height=48, batch_size=1),
            "sample": node(
                "KSampler",
                **{"model": ["loader", 0], "positive": positive, "negative": negative, "latent_image": ["empty", 0]},
                **{"seed": 3, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
            ),
            "save": node("SaveLatent", samples=["sample", 0], filename_prefix="prompt"),
            **nodes,
        }
        (file,) = server.run(graph)["outputs"]["save"]["latents"]
        return load_file(server.output_dir / file["subfolder"] / file["filename"])["latent_tensor"]

    return run


@pytest.fixture
def read(latent):
    """The latent that our node's two outputs make."""
    return lambda prompt, **inputs: latent(["ours", 0], ["ours", 1], ours=ours(prompt, **inputs))


@pytest.fixture
def core_read(latent):
    """The same from ComfyUI's own text nodes, with T5 padded to 512."""

    def run(prompt, negative=""):
        texts = {"want": prompt, "avoid": negative}
        nodes = {name: node("CLIPTextEncode", clip=["t5", 0], text=text) for name, text in texts.items()}
        return latent(["want", 0], ["avoid", 0], **nodes)

    return run


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a red circle on a blue background", ""),
        ("a red circle\n\non a blue background", "green, blurred"),
        ("Ein roter Kreis vor blauem Grund; 一个红色的圆", "grün"),
        ("", ""),
        ("a red circle " * 60, ""),  # longer than CLIP-L reads, as long as T5 does not mind
    ],
)
def test_a_prompt_that_fits_is_read_as_core_reads_it(read, core_read, prompt, negative):
    assert torch.equal(read(prompt, negative_prompt=negative), core_read(prompt, negative))


def test_t5_is_padded_to_512(read, latent):
    short = {"short": node("CLIPTextEncode", clip=["loader", 1], text="a red circle")}  # ComfyUI's 256
    empty = {"empty_text": node("CLIPTextEncode", clip=["loader", 1], text="")}
    assert not torch.equal(read("a red circle"), latent(["short", 0], ["empty_text", 0], **short, **empty))


def test_options_set_upstream_change_nothing(read, latent):
    padded = node("T5TokenizerOptions", clip=["loader", 1], min_padding=40, min_length=900)
    after = {"padded": padded, "ours": ours("a red circle", clip=["padded", 0])}
    assert torch.equal(latent(["ours", 0], ["ours", 1], **after), read("a red circle"))


def test_parentheses_are_ordinary_text(read, core_read):
    weighted = "a (red:1.5) circle, [blue] ((square))"
    assert not torch.equal(read(weighted), core_read(weighted))
    assert torch.equal(read(weighted), core_read(weighted.replace("(", r"\(").replace(")", r"\)")))


def test_what_t5_does_not_read_changes_nothing(read, core_read):
    start = "circle " * 511
    assert torch.equal(read(start + "red"), read(start + "blue, far beyond the end"))
    assert torch.equal(read(start + "red"), core_read(start))  # cut as a whole prompt: the end mark stays


def test_clip_l_reads_the_first_77_tokens(read, core_read):
    # 75 words between the two marks; T5 reads both prompts whole, so only CLIP-L could tell no difference there.
    assert not torch.equal(read("circle " * 74 + "red"), read("circle " * 74 + "blue"))
    long = "circle " * 75 + "red"
    assert torch.equal(read(long), core_read(long))


def test_additions_go_to_the_positive_only(read, core_read):
    chosen = {"film": "Kodak Tri-X 400", "lighting": "blue hour"}
    text = compose("a red circle", **chosen)
    assert torch.equal(
        read("a red circle", negative_prompt="green", texture_enhancement=True, **chosen), core_read(text, "green")
    )


def shown_text(server, **inputs):
    graph = {"loader": LOADER, "ours": node("FluxKreaPrompt", clip=["loader", 1], **inputs)}
    graph["text"] = node("PreviewAny", source=["ours", 2])
    return server.run(graph)["outputs"]["text"]["text"][0]


def test_text_output_is_the_whole_prompt(server):
    assert shown_text(server, prompt="a fox", camera="smartphone") == compose("a fox", camera="smartphone")
    assert shown_text(server, prompt=" a fox", texture_enhancement=False) == " a fox"


def node_messages(server, prompt, **inputs):
    """What the node writes onto itself while it runs."""

    async def collect():
        address = f"{server.url}/ws?clientId={server.client_id}"
        texts = []
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            graph = {"loader": LOADER, "ours": ours(prompt, **inputs)}
            prompt_id = server.submit({**graph, "text": node("PreviewAny", source=["ours", 2])})
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    kind, length = (int.from_bytes(message.data[i : i + 4], "big") for i in (0, 4))
                    if kind == 3 and message.data[8 : 8 + length] == b"ours":
                        texts.append(message.data[8 + length :].decode())
                elif (event := message.json())["type"] == "execution_success":
                    if event["data"]["prompt_id"] == prompt_id:
                        return texts

    return asyncio.run(asyncio.wait_for(collect(), 60))


def test_node_says_how_much_was_read(server):
    assert node_messages(server, "a red circle here") == ["Prompt: T5 reads all 6 tokens (up to 512). CLIP-L all 6."]


def test_node_reports_both_prompts(server):
    (message,) = node_messages(server, "a red circle over there", negative_prompt="green")
    assert [line.split(":")[0] for line in message.splitlines()] == ["Prompt", "Negative prompt"]


def test_overflow_is_reported_with_counts_on_the_node_and_in_the_log(server):
    (message,) = node_messages(server, "circle " * 600)
    assert "T5 reads the first 512 of 601 tokens" in message
    assert "CLIP-L reads the first 77 of 602" in message
    assert message in server.log_text()


def test_clip_l_overflow_alone_is_no_alarm(server):
    (message,) = node_messages(server, "circle " * 100)
    assert "T5 reads all 101 tokens" in message
    assert "CLIP-L reads the first 77 of 102, which is usual" in message
    assert f"WARNING][0m {message}" not in server.log_text()


def test_encoders_of_another_model_are_named(server):
    # One tensor is enough for ComfyUI to take it for Stable Diffusion's CLIP-L.
    other = server.models_dir / "text_encoders" / "other.safetensors"
    save_file({"text_model.final_layer_norm.weight": torch.ones(768)}, other)
    one = node("CLIPLoader", clip_name=other.name, type="stable_diffusion")
    graph = {"loader": one, "ours": ours("a fox", clip=["loader", 0]), "text": node("PreviewAny", source=["ours", 2])}
    with pytest.raises(RunFailed, match=r"encoders are l\..*Krea Model Loader"):
        server.run(graph)


def test_unknown_choice_is_refused_before_anything_runs(server):
    with pytest.raises(PromptRejected, match="film"):
        shown_text(server, prompt="a fox", film="Kodachrome")


def test_menus_hold_the_choices_and_every_input_says_what_it_does(server):
    inputs = server.object_info()["FluxKreaPrompt"]["input"]
    every = {**inputs["required"], **inputs["optional"]}
    for name, choices in CHOICES.items():
        assert every[name][1]["options"] == ["none", *choices]
        assert every[name][1]["default"] == "none"
    for name, (_, options) in every.items():
        assert len(options.get("tooltip", "")) > 20, name
