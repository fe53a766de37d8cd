import argparse
import io
import json

import pytest
from rich.console import Console

from krea_client import cli, errors
from krea_client.cli import flags
from krea_client.events import Notice, Progress, Queued
from krea_client.request import Request, schema


def options(*arguments: str) -> argparse.Namespace:
    return cli.parser().parse_args(arguments)


def test_every_field_of_a_request_is_a_flag_of_generate():
    given = options("generate", "words")
    values = {
        "negative_prompt": "grain",
        "aspect_ratio": "2:3",
        "resolution": "4K",
        "megapixels": 0.5,
        "guidance_scale": 3.5,
        "true_cfg_scale": 2.0,
        "num_inference_steps": 30,
        "seed": 9,
        "num_images": 3,
        "style_reference_weight": 0.4,
        "image_prompt": "a.png",
        "output_format": "webp",
        "disclosure": "none",
        "content_filter": "review",
    }
    words = [word for name, value in values.items() for word in ("--" + name.replace("_", "-"), str(value))]
    given = options(
        "generate",
        "words",
        *words,
        "--no-texture-enhancement",
        "--style-reference",
        "b.png",
        "--style-reference",
        "c@0.2",
    )
    request = Request.read(flags.request(given))
    references = ({"image": "b.png", "weight": None}, {"image": "c", "weight": 0.2})
    assert request.model_dump() == values | {
        "prompt": "words",
        "texture_enhancement": False,
        "style_references": references,
    }


def test_what_is_not_given_is_left_to_the_request():
    assert flags.request(options("generate", "words")) == {"prompt": "words"}


def test_a_prompt_of_one_dash_is_read_from_the_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", iter_text("Fog over a harbour.\nWet cobbles.\n"))
    assert flags.request(options("generate", "-")) == {"prompt": "Fog over a harbour.\nWet cobbles."}


def iter_text(text: str):
    return io.StringIO(text)


def test_the_help_of_generate_says_what_every_field_does(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for field in schema()["properties"].values():
        assert " ".join(field["description"].split())[:60] in text


def told_by_help(command: str, capsys) -> str:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_the_help_tells_each_commands_own_defaults(capsys):
    request = "what the pictures show and how they are made"
    assert "(default: 28)" in told_by_help("generate", capsys)
    vary = told_by_help("vary", capsys).partition(f"{request}: What is not given stays as it was in the earlier job.")
    assert vary[2] and "default:" not in vary[2]
    grid = told_by_help("grid", capsys)
    assert "By default 0." in grid and "By default random" not in grid


def test_the_help_of_batch_says_what_a_line_may_hold(capsys):
    told = told_by_help("batch", capsys)
    assert 'an "id" of letters, digits' in told and "any other key is refused" in told


def test_the_help_lists_every_exit_code(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    codes = {
        line.split()[0] for line in capsys.readouterr().out.partition("exit codes:")[2].splitlines() if line.strip()
    }
    types = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.KreaError)]
    assert codes == {str(kind.exit_code) for kind in types} | {"0", "9", "130"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "a", "--guidance-scale", "20"], "guidance_scale: found 20.0"),
        (["generate", ""], "prompt is empty"),
        (["generate", "a", "--header", "no colon"], "not of the form"),
        (["generate", "a", "--model", "unet=x"], "PART=FILE"),
        (["generate", "a", "--server", "ftp://x"], "Expected http://HOST:PORT"),
        (["generate", "a", "--key", "key.pem"], "key.pem has no certificate"),
        (["generate", "a", "--header", "X:secret\nY: b"], "The value of the header X (not shown here)"),
        (["batch", "a.jsonl", "--out", "b", "--ray", "--workers", "2"], "add --start"),
        (["batch", "a.jsonl", "--out", "b", "--folder", "ComfyUI"], "add --start"),
        (["batch", "a.jsonl", "--out", "b", "--gpus", "1"], "add --start"),
        (["grid", "a", "--seed", "1"], "Nothing to compare"),
        (["grid", "a", "--style-reference-weight", "0.2", "0.4"], "no style reference"),
        (["grid", "a", "--seed", *map(str, range(101))], "101 pictures"),
        (["vary", "not-there.json"], "is not the result of a job"),
        (["models", "download", "folder", "flux.safetensors"], "no published file has this name"),
    ],
)
def test_a_wrong_call_ends_with_code_2_and_says_why(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert words in told.err and "secret" not in told.err
    assert not told.out


def test_with_json_an_error_is_json(capsys):
    assert cli.main(["generate", "a", "--seed", "-1", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "invalid_request"


def test_a_header_is_shown_nowhere(capsys, monkeypatch):
    monkeypatch.setenv("KREA_HEADERS", "Authorization: Bearer secret-1\nX-Key: secret-2")
    given = options("server", "--header", "X-Other:secret-3")
    assert flags.headers(given) == {"Authorization": "Bearer secret-1", "X-Key": "secret-2", "X-Other": "secret-3"}
    assert cli.main(["server", "--server", "http://name:secret-4@127.0.0.1:9", "--header", "X:secret-3"]) == 3
    told = capsys.readouterr()
    assert "secret" not in told.out + told.err


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """What a terminal is sent."""
    sent = io.StringIO()
    monkeypatch.setattr("krea_client.cli.terminal.Console", lambda stderr: Console(file=sent, force_terminal=True))
    return sent


def test_a_terminal_is_told_the_job_id_once_as_soon_as_the_server_has_the_job(terminal):
    from krea_client.cli.terminal import shown

    with shown(preview=False) as show:
        show(Queued("5f8a1c2e", ahead=2))
        show(Queued("5f8a1c2e", ahead=1))
    assert terminal.getvalue().count("Handed over as job 5f8a1c2e") == 1


def test_a_lost_server_is_named_once(tmp_path, capsys):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a"}')
    words = ["batch", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "out"), "--server", "http://127.0.0.1:9"]
    assert cli.main(words) == errors.ServerUnreachable.exit_code
    (notice,) = [line for line in capsys.readouterr().err.splitlines() if "is lost" in line]
    assert notice.count("http://127.0.0.1:9") == 1


def test_a_terminal_shows_brackets_in_the_words_of_a_server(terminal):
    from krea_client.cli.terminal import shown

    with shown(preview=False) as show:
        show(Notice("5f8a1c2e", "[/b] gone"))
        show(Progress("5f8a1c2e", "[/i]node", 1, 2))
    assert "[/b] gone" in terminal.getvalue() and "[/i]node" in terminal.getvalue()


@pytest.mark.parametrize(
    "address",
    [
        "http://h:1/?token=secret",
        "http://h:1/#secret",
        "h:1?a=http://b/secret",
        "http://me:secret@h:1/?next=http://b/secret",
        "http://me:secret?secret@h:1",
        "http://h:1/?mail=me@secret",
    ],
)
def test_what_is_secret_in_a_wrong_address_is_not_shown(address, capsys):
    assert cli.main(["server", "--server", address]) == 2
    told = capsys.readouterr().err
    assert "secret" not in told and ("h:1" in told or "'...'" in told)


@pytest.mark.parametrize("reader", ["openai", "anthropic", "mcp"])
def test_the_schema_is_wrapped_for_each_kind_of_tool(reader, capsys):
    assert cli.main(["schema", "--for", reader]) == 0
    tool = json.loads(capsys.readouterr().out)
    inner = tool.get("function", tool)
    assert inner["name"] == "generate_image"
    assert len(inner["description"]) > 200
    assert next(inner[key] for key in ("parameters", "input_schema", "inputSchema") if key in inner) == schema()
