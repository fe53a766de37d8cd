"""Appending to the audit log: the chain, refused records, kills at any moment, many writers, files and prompts."""

import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from krea.audit import AuditError, AuditLog, export, verify
from tests.unit.audit.logs import FIRST, LAST, fill, lines, needs_posix, records


def test_records_chain_on_one_another(folder):
    written = fill(folder)
    assert records(folder) == written
    assert [record["sequence"] for record in written] == [1, 2, 3, 4, 5]
    assert [record["previous"] for record in written] == ["0" * 64, *(record["hash"] for record in written[:-1])]
    assert written[3]["event"] == "decision" and written[3]["number"] == 3
    times = [datetime.fromisoformat(record["time"]) for record in written]
    assert times == sorted(times) and times[0].utcoffset() == timedelta(0)
    assert all(re.fullmatch(r".{19}\.\d{6}\+00:00", record["time"]) for record in written)


def test_a_log_is_continued(folder):
    first, second = fill(folder, 3), fill(folder, 2)
    assert second[0]["previous"] == first[-1]["hash"]
    assert verify(folder).problems == []


def test_any_json_reads_back(folder):
    values = {
        "text": 'quote " line\n \u00e9 \U0001f600 \ud800',
        "numbers": [0, -1, 2**70, 0.1, 1e-300, -0.0],
        "nested": {"a": [{"b": None}], "": True},
        "odd name": False,
        "tuple": (1, (2,)),
    }
    record = AuditLog(folder).append("decision", **values)
    assert verify(folder).problems == []
    assert records(folder) == [{**record, "tuple": [1, [2]]}]


def test_the_hash_can_be_computed_by_others(folder):
    (record,) = fill(folder, 1)
    content = {name: value for name, value in record.items() if name != "hash"}
    tool = [sys.executable, "-c", "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert subprocess.run(tool, input=text, capture_output=True).stdout.decode().strip() == record["hash"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "field score is nan"),
        ([1.0, -float("inf")], r"field score\[1\] is -inf"),
        ({"a": [{"b": {1, 2}}]}, r"field score\.a\[0\]\.b is a set"),
        (b"bytes", "is a bytes"),
        (object(), "is a object"),
        ({1: "a"}, "is a dict.*text as keys"),
        (Path("x"), "is a"),
    ],
)
def test_a_value_that_is_not_json_is_refused(folder, value, message):
    log = AuditLog(folder)
    with pytest.raises(AuditError, match=message):
        log.append("decision", score=value)
    assert lines(folder) == []


@pytest.mark.parametrize("name", ["sequence", "time", "event", "previous", "hash"])
def test_a_field_cannot_take_the_logs_own_names(folder, name):
    log = AuditLog(folder)
    with pytest.raises(AuditError, match=f"field {name} .*another name"):
        log.append("decision", **{name: "x"})
    assert lines(folder) == []


@pytest.mark.parametrize("event", ["", None, 3])
def test_an_event_is_a_word(folder, event):
    with pytest.raises(AuditError, match="Expected a word"):
        AuditLog(folder).append(event)
    assert lines(folder) == []


def test_a_record_that_is_too_long_is_refused(folder):
    log = AuditLog(folder)
    with pytest.raises(AuditError, match="Expected at most 1,048,576"):
        log.append("decision", text="x" * 2**20)
    log.append("decision", text="x" * (2**20 - 1000))
    assert verify(folder).problems == [] and len(lines(folder)) == 1


def test_an_error_does_not_quote_what_may_be_a_prompt(folder):
    with pytest.raises(AuditError) as error:
        AuditLog(folder).append("decision", prompts={1: "a secret prompt"})
    assert "secret" not in str(error.value)


def test_importing_the_log_imports_no_torch(root):
    check = "import sys, krea.audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=root).returncode == 0


# Kills


def test_a_torn_line_is_moved_aside_and_recorded(folder):
    written = fill(folder, 3)
    with open(folder / FIRST, "ab") as file:
        file.write(b'{"decision": "blo')
    assert verify(folder).problems == []
    last = AuditLog(folder).append("decision")
    assert (folder / f"{FIRST}.torn-1").read_bytes() == b'{"decision": "blo'
    found = records(folder)
    assert found[:3] == written and found[4] == last
    assert found[3]["event"] == "torn_line"
    assert (found[3]["file"], found[3]["bytes"], found[3]["moved_to"]) == (FIRST, 17, f"{FIRST}.torn-1")
    assert verify(folder).problems == []


def test_a_second_torn_line_does_not_replace_the_first(folder):
    for torn in (b"one", b"two"):
        fill(folder, 1)
        with open(folder / FIRST, "ab") as file:
            file.write(torn)
    fill(folder, 1)
    assert [(folder / f"{FIRST}.torn-{number}").read_bytes() for number in (1, 2)] == [b"one", b"two"]
    assert verify(folder).problems == []


def test_a_torn_first_line_of_a_file_is_moved_aside(three_files):
    (three_files / "audit-000004.jsonl").write_bytes(b"torn")
    assert verify(three_files).problems == []
    fill(three_files, 1)
    assert [record["event"] for record in records(three_files)[6:]] == ["torn_line", "decision"]
    assert verify(three_files).problems == []


@pytest.mark.parametrize("count", range(6))
def test_a_head_behind_whole_records_catches_up(folder, count):
    """Even over several files."""
    heads = []
    log = AuditLog(folder, max_file_bytes=700)
    for number in range(6):
        heads.append((folder / "head.json").read_bytes())
        log.append("decision", number=number, score=number / 7)
    (folder / "head.json").write_bytes(heads[count])
    assert verify(folder).problems == []
    assert log.append("decision")["sequence"] == 7
    assert verify(folder).problems == []


@needs_posix
def test_a_record_is_on_the_disk_before_its_head(folder, monkeypatch):
    fill(folder, 1)
    synced = []

    def fsync(number):
        head = json.loads((folder / "head.json").read_bytes())
        synced.append((os.fstat(number).st_ino, head["sequence"]))

    monkeypatch.setattr(os, "fsync", fsync)
    fill(folder, 1)
    record, head, names = synced
    assert record == ((folder / FIRST).stat().st_ino, 1)
    assert head == ((folder / "head.json").stat().st_ino, 1)
    assert names == (folder.stat().st_ino, 2)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(1, 10))
@pytest.mark.parametrize("left", ["nothing", "a torn line"])
def test_a_kill_between_any_two_steps_loses_nothing(three_files, monkeypatch, moment, left):
    """Killed before the n-th time that something is put on the disk, in an append that begins a new file."""
    before = records(three_files)
    if left == "a torn line":
        with open(three_files / LAST, "ab") as file:
            file.write(b"torn")
    log = AuditLog(three_files, max_file_bytes=700)
    steps = 0

    def killing(call):
        def step(*arguments):
            nonlocal steps
            steps += 1
            if steps == moment:
                raise Killed
            return call(*arguments)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killing(os.fsync))
        patch.setattr(os, "replace", killing(os.replace))
        try:
            log.append("killed")
        except Killed:
            pass
        else:
            assert steps < moment
    assert verify(three_files).problems == []
    last = log.append("after")
    assert verify(three_files).problems == []
    after = records(three_files)
    assert after[:6] == before and after[-1] == last
    torn = [path.read_bytes() for path in three_files.glob("*.torn-*")]
    events = [record["event"] for record in after[6:]]
    assert events.count("torn_line") == (left == "a torn line")
    assert set(torn) == ({b"torn"} if left == "a torn line" else set())


KILLED = """
import sys
from krea.audit import AuditLog
log = AuditLog(sys.argv[1], 3000)
while True:
    record = log.append("decision", text="x" * 200)
    sys.stdout.write(record["hash"] + "\\n")
    sys.stdout.flush()
"""


@needs_posix
def test_a_killed_process_loses_no_record_whose_append_returned(folder, root):
    chance = random.Random(7)
    returned = []
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE, cwd=root)
        returned.append(process.stdout.readline().decode().strip())
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        rest, _ = process.communicate()
        returned += [line.decode().strip() for line in rest.splitlines(True) if line.endswith(b"\n")]
        assert verify(folder).problems == []
    hashes = [record["hash"] for record in records(folder)]
    assert len(returned) > 8 and set(returned) <= set(hashes)
    assert len(hashes) <= len(returned) + 2 * 8


# Many writers


WRITER = """
import sys
from krea.audit import AuditLog
folder, name = sys.argv[1:]
log = AuditLog(folder, max_file_bytes=20_000)
for number in range(200):
    log.append("decision", writer=name, number=number, prompt=log.prompt_key("a fox"))
"""


def test_two_processes_append_at_once(folder, root):
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, folder, name], cwd=root) for name in "ab"]
    problems = []
    while any(process.poll() is None for process in processes):
        if (folder / "head.json").exists():
            problems += verify(folder).problems
        time.sleep(0.1)
    assert [process.returncode for process in processes] == [0, 0]
    report = verify(folder)
    assert (report.records, report.problems, problems) == (400, [], [])
    found = records(folder)
    for name in "ab":
        assert [record["number"] for record in found if record["writer"] == name] == list(range(200))
    assert len({record["prompt"] for record in found}) == 1


def test_threads_append_at_once(folder):
    log = AuditLog(folder)

    def work():
        for number in range(25):
            log.append("decision", number=number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = verify(folder)
    assert (report.records, report.problems) == (100, [])


# Files


def test_no_file_is_larger_than_asked(folder):
    fill(folder, 40, max_file_bytes=1500)
    paths = sorted(folder.glob("audit-*"))
    assert [path.name for path in paths] == [f"audit-{number:06d}.jsonl" for number in range(1, len(paths) + 1)]
    assert len(paths) > 5 and all(path.stat().st_size <= 1500 for path in paths)
    assert verify(folder).records == 40 and verify(folder).problems == []


def test_a_record_larger_than_a_file_has_one_of_its_own(folder):
    fill(folder, 3, max_file_bytes=10)
    assert [path.read_bytes().count(b"\n") for path in folder.glob("audit-*")] == [1, 1, 1]
    assert verify(folder).problems == []


@needs_posix
def test_nobody_else_may_read_the_log(folder):
    old = os.umask(0)
    try:
        fill(folder, 4, max_file_bytes=700)
        with open(folder / "audit-000002.jsonl", "ab") as file:
            file.write(b"torn")
        fill(folder, 1)
        export(folder, folder.parent / "export.jsonl")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    paths = [*folder.iterdir(), folder.parent / "export.jsonl"]
    assert {"lock", "head.json", "prompt.key", FIRST, "audit-000002.jsonl.torn-1"} < {path.name for path in paths}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


@needs_posix
def test_an_empty_folder_is_made_private(folder):
    folder.mkdir(mode=0o755)
    AuditLog(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_holds_other_things_is_refused(tmp_path):
    (tmp_path / "picture.png").touch()
    with pytest.raises(AuditError, match="holds other things, such as picture.png"):
        AuditLog(tmp_path)
    assert os.listdir(tmp_path) == ["picture.png"]


# Prompts


def test_a_prompt_has_the_same_key_for_as_long_as_the_log_lives(folder):
    log = AuditLog(folder)
    key = log.prompt_key("a fox in the snow")
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert AuditLog(folder).prompt_key("a fox in the snow") == key
    assert log.prompt_key("a fox in the snow ") != key
    assert log.prompt_key("\ud800") != log.prompt_key("?")


def test_two_logs_have_different_keys(tmp_path):
    assert AuditLog(tmp_path / "a").prompt_key("fox") != AuditLog(tmp_path / "b").prompt_key("fox")


def test_a_lost_key_is_not_made_anew_behind_the_records(folder):
    fill(folder)
    (folder / "prompt.key").unlink()
    with pytest.raises(AuditError, match="prompt.key is missing.*Restore it"):
        AuditLog(folder)


def test_a_damaged_key_is_refused(folder):
    AuditLog(folder)
    (folder / "prompt.key").write_bytes(b"")
    with pytest.raises(AuditError, match="has 0 bytes; 32 were expected"):
        AuditLog(folder)
