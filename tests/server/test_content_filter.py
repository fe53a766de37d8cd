"""The gate on a real ComfyUI: what is flagged is reachable over HTTP in no way but the review."""

import hashlib
import http.client
import io
import json
import secrets
import signal
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from dev.client import images_of
from dev.host import ComfyHost, HostDied
from krea import disclosure
from krea.audit.__main__ import main as audit_command

SKIN = (224, 172, 142)  # Open NSFW gives a wall of it 0.22
REVIEW = "/flux_krea/review"


@pytest.fixture(scope="module")
def pictures(server):
    """Names of a picture that no judge minds and of one that Open NSFW flags, in ComfyUI's input folder."""
    y, x = np.mgrid[0:96, 0:96].astype(np.uint8)
    Image.fromarray(np.stack((x, y, x // 2), -1)).save(server.input_dir / "safe.png")
    Image.new("RGB", (96, 96), SKIN).save(server.input_dir / "flagged.png")
    return ["safe.png", "flagged.png"]


def gated(names, number, **settings):
    """A graph that saves pictures through the gate; `number` makes it a new one."""
    graph = {
        "filter": {
            "class_type": "FluxKreaContentFilterLoader",
            "inputs": {
                "open_nsfw": True,
                "vit_nsfw": "none",
                "word_lists": True,
                "on_review": "hold for review",
                "on_block": "block",
                **settings,
            },
        },
        "prompt": {"class_type": "FluxKreaPromptFilter", "inputs": {"filter": ["filter", 0], "prompt": "a wall"}},
        "save": {
            "class_type": "FluxKreaSaveImage",
            "inputs": {"filter": ["prompt", 2], "filename_prefix": f"gate{number}", "file_format": "png"},
        },
    }
    link = None
    for place, name in enumerate(names):
        graph[f"load{place}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        own = [f"load{place}", 0]
        if link is not None:
            graph[f"batch{place}"] = {"class_type": "ImageBatch", "inputs": {"image1": link, "image2": own}}
            own = [f"batch{place}", 0]
        link = own
    graph["save"]["inputs"]["images"] = link
    return graph


def send(server, path, body, **headers):
    """(status, answer) of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        server.url + path, data, {"Content-Type": "application/json", **headers}, method="POST"
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b'{"error": ""}')  # ComfyUI's own refusals say nothing


def status_of(server, path, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def is_a_wall(file):
    """Whether a picture is of one colour, as the flagged one is."""
    return bool(np.asarray(Image.open(file).convert("RGB")).std((0, 1)).max() < 1)


def waiting(server, prefix):
    return [case for case in server.get(REVIEW)["waiting"] if case["prefix"] == prefix]


def test_only_what_passes_is_saved_and_the_rest_waits(server, pictures):
    record = server.run(gated([pictures[0], pictures[1], pictures[0]], 1))
    saved = images_of(record)
    assert [image["filename"] for image in saved] == ["gate1_00001_.png", "gate1_00002_.png"]
    output = record["outputs"]["save"]
    assert output["text"][0].startswith("2 of 3 pictures pass the content filter.\nPicture 2: waits for review.")
    assert [verdict["outcome"] for verdict in output["verdicts"]] == ["pass", "hold for review", "pass"]
    (case,) = waiting(server, "gate1")
    assert case["id"] == output["verdicts"][1]["id"] and case["reasons"] == output["verdicts"][1]["reasons"]


@pytest.mark.parametrize(
    "number, settings, source_type, graph_kept",
    [
        (20, {}, "trainedAlgorithmicMedia", True),
        (21, {"file_format": "webp"}, "trainedAlgorithmicMedia", True),
        (22, {"disclosure": "edited by AI"}, "compositeWithTrainedAlgorithmicMedia", True),
        (23, {"keep_workflow": False}, "trainedAlgorithmicMedia", False),
        (24, {"disclosure": "none"}, None, True),
    ],
    ids=str,
)
def test_a_file_says_what_the_user_chose(server, pictures, number, settings, source_type, graph_kept):
    graph = gated([pictures[0]], number)
    graph["save"]["inputs"] |= settings
    (image,) = images_of(server.run(graph))
    said = disclosure.read(server.view(image))
    assert said.source_type == source_type and ("prompt" in said.metadata) == graph_kept
    if graph_kept:  # as ComfyUI ran it; of LoadImage it notes what file it read
        assert json.loads(said.metadata["prompt"])["save"] == graph["save"]
    audit = server.base / "user" / "__flux_krea" / "audit"
    last = json.loads(max(audit.glob("audit-*.jsonl")).read_bytes().splitlines()[-1])
    assert (last["event"], last["disclosure"]) == ("saved", source_type or "none")
    assert last["sha256"] == hashlib.sha256(server.view(image)).hexdigest()


def test_a_label_is_drawn_and_content_credentials_hold(server, pictures):
    import c2pa

    files = []
    for number, settings in ((25, {}), (26, {"label": True}), (27, {"content_credentials": True})):
        graph = gated([pictures[0]], number)
        graph["save"]["inputs"] |= settings
        files.append(server.view(images_of(server.run(graph))[0]))
    plain, labelled, signed = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int) for data in files)
    assert (plain == signed).all() and (np.abs(plain - labelled).max(-1) > 60).mean() > 0.01
    with c2pa.Reader("image/png", io.BytesIO(files[2])) as reader:
        assert "trainedAlgorithmicMedia" in reader.json() and reader.get_validation_state() == "Valid"


def test_a_picture_that_was_held_keeps_its_content_credentials(server, pictures):
    import c2pa

    graph = gated([pictures[1]], 29)
    graph["save"]["inputs"]["content_credentials"] = True
    server.run(graph)
    (case,) = waiting(server, "gate29")
    assert send(server, f"{REVIEW}/{case['id']}", {"approved": True})[0] == 200
    released = server.view({"filename": "gate29_00001_.png", "subfolder": "", "type": "output"})
    with c2pa.Reader("image/png", io.BytesIO(released)) as reader:
        assert reader.get_validation_state() == "Valid"


def test_a_graph_without_the_gate_sees_the_pictures_as_they_were(server, pictures):
    """The picture comes out of ComfyUI's cache, which the gate before it shared."""
    graph = gated([pictures[1]], 30, on_review="blur")
    gate = {"filter": ["filter", 0], "images": ["load0", 0]}
    graph["gate"] = {"class_type": "FluxKreaContentFilter", "inputs": gate}
    graph["blurred"] = {"class_type": "SaveImage", "inputs": {"images": ["gate", 0], "filename_prefix": "blurred"}}
    server.run(graph)
    plain = {
        "load0": graph["load0"],
        "keep": graph["blurred"] | {"inputs": {"images": ["load0", 0], "filename_prefix": "plain"}},
    }
    record = server.run(plain)
    cached = [data["nodes"] for kind, data in record["status"]["messages"] if kind == "execution_cached"]
    assert cached == [["load0"]]
    (image,) = images_of(record)
    assert is_a_wall(io.BytesIO(server.view(image)))
    with Image.open(io.BytesIO(server.view(image))) as picture:
        assert picture.getpixel((5, 5))[:3] == SKIN


def test_no_route_and_no_served_folder_has_a_flagged_picture(server, pictures):
    def served():
        return {file for folder in ("output", "temp") for file in (server.base / folder).rglob("*") if file.is_file()}

    before = served()  # other tests approve flagged pictures
    for number, on_review in ((2, "hold for review"), (3, "block")):
        server.run(gated([pictures[0], pictures[1]], number, on_review=on_review))
    fresh = served() - before
    assert len(fresh) == 2 and not any(map(is_a_wall, fresh))
    (case,) = waiting(server, "gate2")
    held = server.request(f"{REVIEW}/{case['id']}/picture")
    assert hashlib.sha256(held).hexdigest() == case["sha256"] and is_a_wall(io.BytesIO(held))
    name = f"picture.png&subfolder=../user/__flux_krea/quarantine/{case['id']}"
    for path in (
        *(f"/view?filename={name}&type={kind}" for kind in ("output", "temp", "input")),
        f"/userdata/..%2F__flux_krea%2Fquarantine%2F{case['id']}%2Fpicture.png",
        f"/userdata/__flux_krea%2Fquarantine%2F{case['id']}%2Fpicture.png",
        f"{REVIEW}/..%2f..%2f{case['id']}/picture",
        f"{REVIEW}/{'0' * 32}/picture",
    ):
        assert status_of(server, path) in (400, 403, 404), path


def test_neither_the_websocket_nor_the_history_shows_a_flagged_picture(server, pictures):
    events = list(server.events(gated([pictures[1]], 28)))
    (saving,) = [event.data for event in events if event.type == "executed" and event.data["node"] == "save"]
    assert saving["output"]["images"] == [] and not any(event.type == "preview" for event in events)
    record = server.wait(saving["prompt_id"])
    assert record["outputs"]["save"]["images"] == [] and "gate28_" not in json.dumps(record["outputs"])


def test_a_person_approves_or_rejects_over_http_once(server, pictures):
    server.run(gated([pictures[1], pictures[1]], 4))
    first, second = waiting(server, "gate4")
    words = {"reviewer": "Ann", "note": "<script>alert(1)</script>"}
    status, answer = send(server, f"{REVIEW}/{first['id']}", {"approved": True, **words})
    assert status == 200 and answer["approved"]
    released = server.view({"filename": "gate4_00001_.png", "subfolder": "", "type": "output"})
    assert hashlib.sha256(released).hexdigest() == first["sha256"] and b"trainedAlgorithmicMedia" in released
    assert send(server, f"{REVIEW}/{second['id']}", {"approved": False, **words})[0] == 200
    for case in (first, second):
        status, answer = send(server, f"{REVIEW}/{case['id']}", {"approved": True})
        assert status == 404 and "somebody has decided" in answer["error"]
    assert waiting(server, "gate4") == []


@pytest.mark.parametrize(
    "body, headers, status, message",
    [
        (b"{", {}, 400, "no JSON"),
        (b"\xff", {}, 400, "no JSON"),
        (b"[" * 200_000, {}, 400, "no JSON"),
        ({"approved": True}, {"Content-Type": "application/json; charset=klingon"}, 400, "no JSON"),
        ({}, {}, 400, "approved: true"),
        ({"approved": "yes"}, {}, 400, "approved: true"),
        ([], {}, 400, "approved: true"),
        ({"approved": True, "note": 1}, {}, 400, "note must be text"),
        ({"approved": True, "reviewer": "x" * 201}, {}, 400, "at most 200"),
        ({"approved": True}, {"Content-Type": "text/plain"}, 415, "application/json"),
        ({"approved": True}, {"Sec-Fetch-Site": "cross-site"}, 403, ""),
    ],
    ids=str,
)
def test_a_decision_that_is_none_is_refused(server, pictures, body, headers, status, message):
    if not waiting(server, "gate5"):
        server.run(gated([pictures[1]], 5))
    (case,) = waiting(server, "gate5")
    found, answer = send(server, f"{REVIEW}/{case['id']}", body, **headers)
    assert found == status and message in answer["error"]
    assert waiting(server, "gate5") == [case]


def test_a_decision_that_cannot_be_carried_out_is_kept_and_says_so(server, pictures):
    server.run(gated([pictures[1]], 9))
    (case,) = waiting(server, "gate9")
    audit = server.base / "user" / "__flux_krea" / "audit"
    aside = audit.rename(audit.with_name("aside"))
    audit.write_text("a file where the folder should be")
    try:
        status, answer = send(server, f"{REVIEW}/{case['id']}", {"approved": True})
    finally:
        audit.unlink()
        aside.rename(audit)
    assert status == 500 and "is kept" in answer["error"] and "when ComfyUI starts" in answer["error"]
    held = server.base / "user" / "__flux_krea" / "quarantine" / case["id"]
    assert json.loads((held / "ruling.json").read_text())["approved"] and (held / "picture.png").exists()


def test_a_picture_that_is_not_the_one_that_was_held_cannot_be_approved(server, pictures):
    server.run(gated([pictures[1]], 31))
    (case,) = waiting(server, "gate31")
    (server.base / "user" / "__flux_krea" / "quarantine" / case["id"] / "picture.png").write_bytes(b"another")
    status, answer = send(server, f"{REVIEW}/{case['id']}", {"approved": True})
    assert status == 500 and "No decision was made" in answer["error"] and waiting(server, "gate31") == [case]
    assert send(server, f"{REVIEW}/{case['id']}", {"approved": False})[0] == 200


def test_what_could_only_fail_after_the_sampler_is_refused_before(server, pictures):
    graph = gated([pictures[0]], 32)
    graph["save"]["inputs"] |= {"filename_prefix": "../../x"}
    status, answer = send(server, "/prompt", {"prompt": graph})
    (error,) = answer["node_errors"]["save"]["errors"]
    assert status == 200 and "leads out of the output folder" in error["details"]  # the prompt is judged all the same


def test_a_prompt_that_waits_for_review_is_not_forgotten_behind_another(server, pictures):
    graph = gated([pictures[0]], 33)
    inputs = {"filter": ["filter", 0], "prompt": "a nude woman on a beach, playboy"}
    graph["first"] = {"class_type": "FluxKreaPromptFilter", "inputs": inputs}
    graph["prompt"]["inputs"]["filter"] = ["first", 2]
    assert images_of(server.run(graph)) == [] and len(waiting(server, "gate33")) == 1


def test_a_page_of_another_site_is_refused(server, pictures):
    server.run(gated([pictures[1]], 6))
    (case,) = waiting(server, "gate6")
    for path in (REVIEW, f"{REVIEW}/{case['id']}/picture"):
        assert status_of(server, path, Origin="http://evil.example") == 403
    request = urllib.request.Request(
        f"{server.url}{REVIEW}/{case['id']}",
        b'{"approved": true}',
        {"Content-Type": "application/json", "Origin": "http://evil.example"},
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    assert waiting(server, "gate6") == [case]


def test_a_stricter_setting_judges_the_same_pictures_again(server, pictures):
    graph = gated([pictures[1]], 7, open_nsfw_review=0.5)
    assert len(images_of(server.run(graph))) == 1
    record = server.run(gated([pictures[1]], 7, open_nsfw_review=0.1, open_nsfw_block=0.2))
    assert images_of(record) == [] and record["outputs"]["save"]["verdicts"][0]["outcome"] == "block"


def test_a_refused_prompt_makes_no_picture_and_says_why(server, pictures):
    graph = gated([pictures[0]], 8)
    graph["prompt"]["inputs"]["prompt"] = "hardcore porn, zanzibar"
    record = server.run(graph)
    assert images_of(record) == [] and "save" not in record["outputs"]
    (text,) = record["outputs"]["prompt"]["text"]
    assert text.startswith("The prompt is refused.") and "zanzibar" not in text
    audit = server.base / "user" / "__flux_krea" / "audit"
    assert all(b"zanzibar" not in file.read_bytes() for file in audit.iterdir())
    assert "zanzibar" not in server.log.read_text(encoding="utf-8", errors="replace")


def test_two_clients_at_once_get_their_own_pictures(server, pictures):
    records = {}

    def run(number):
        names = [pictures[0]] * number + [pictures[1]]
        records[number] = server.run(gated(names, 10 + number))

    clients = [threading.Thread(target=run, args=(number,)) for number in (1, 2, 3)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for number, record in records.items():
        assert len(images_of(record)) == number
        assert len(waiting(server, f"gate{10 + number}")) == 1


def test_the_record_is_whole(server, pictures):
    from krea.audit import verify

    report = verify(server.base / "user" / "__flux_krea" / "audit")
    assert report.problems == [] and report.records > 10


def review_everything(host):
    """Decide about whatever waits, until the server is gone: some are approved, some rejected."""
    while True:
        try:
            for case in host.get(REVIEW)["waiting"]:
                send(host, f"{REVIEW}/{case['id']}", {"approved": case["id"][0] in "01234567"})
        except (OSError, http.client.HTTPException, HostDied):
            return


def audited(host):
    """The audit record, its events by kind."""
    records = {"picture": [], "saved": [], "review": [], "prompt": []}
    for file in sorted((host.base / "user" / "__flux_krea" / "audit").glob("audit-*.jsonl")):
        for line in file.read_bytes().splitlines():
            record = json.loads(line)
            records.setdefault(record["event"], []).append(record)
    return records


def test_kills_at_any_moment_lose_nothing_and_leak_nothing(tmp_path, pictures, server):
    """While pictures are judged, saved, held and decided about, each of which writes into the audit record."""
    delays = [secrets.randbelow(2000) / 1000 for _ in range(2)]  # s; other ones in every run
    for number, delay in enumerate(delays):
        with ComfyHost(tmp_path) as host:
            for name in pictures:
                (host.input_dir / name).write_bytes((server.input_dir / name).read_bytes())
            for job in range(100):
                host.submit(gated(pictures * 2, 100 * number + job))
            reviewer = threading.Thread(target=review_everything, args=(host,))
            reviewer.start()
            while len(list(host.output_dir.glob("*.png"))) < 2 + 4 * number:
                host.check_alive()
                time.sleep(0.02)
            time.sleep(delay)
            host.process.send_signal(signal.SIGKILL)
            host.process.wait()
            reviewer.join()

    with ComfyHost(tmp_path) as host:
        run_at = f"killed {delays} s after the first pictures"
        assert audit_command(["verify", str(host.base / "user" / "__flux_krea" / "audit")]) == 0, run_at
        records = audited(host)
        decided = {record["case"]: record for record in records["review"]}
        waits = {case["id"]: case for case in host.get(REVIEW)["waiting"]}
        for case in waits.values():
            held = host.request(f"{REVIEW}/{case['id']}/picture")
            assert hashlib.sha256(held).hexdigest() == case["sha256"], run_at

        held = {record["picture"] for record in records["picture"] if record["outcome"] == "hold for review"}
        assert held and held <= waits.keys() | decided.keys(), run_at
        assert not waits.keys() & decided.keys(), run_at
        approved = {record["sha256"] for record in decided.values() if record["decision"] == "approved"}
        allowed = {record["sha256"] for record in records["saved"]} | approved
        written = {}
        for file in host.output_dir.iterdir():
            if not (file.name.startswith(".") and file.suffix == ".partial"):  # what was being written
                written[hashlib.sha256(file.read_bytes()).hexdigest()] = file
        assert approved <= written.keys() <= allowed, run_at
        for digest, file in written.items():
            assert is_a_wall(file) == (digest in approved), run_at

        host.run(gated([pictures[1]], 1000))
        (case,) = waiting(host, "gate1000")
        assert send(host, f"{REVIEW}/{case['id']}", {"approved": True})[0] == 200
        assert len(list(host.output_dir.glob("gate1000_*.png"))) == 1
