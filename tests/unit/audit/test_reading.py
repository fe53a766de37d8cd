"""Reading the audit log: every way to tamper with it, export, and the command line."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea.audit import START, AuditError, AuditLog, Report, export, verify
from krea.audit.records import canonical_line, new_record, record_hash, write_head
from tests.unit.audit.logs import FIRST, LAST, fill, lines, records, rewrite


def test_a_report_tells_the_span_and_the_last_hash(three_files):
    written = records(three_files)
    report = verify(three_files)
    assert report == Report(6, 3, written[0]["time"], written[-1]["time"], written[-1]["hash"], [])


def test_an_empty_log_is_whole(folder):
    AuditLog(folder)
    assert verify(folder) == Report()


def test_verify_and_export_change_nothing(three_files, tmp_path):
    def state():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in three_files.iterdir()}

    before = state()
    verify(three_files)
    export(three_files, tmp_path / "export.jsonl")
    assert state() == before


def test_verify_does_not_hold_the_log_in_memory(folder):
    AuditLog(folder)
    head = START
    with open(folder / FIRST, "wb") as file:
        for _ in range(2000):
            record, line = new_record(head, "decision", {"text": "x" * 500})
            head = head.after(record, line)
            file.write(line)
    write_head(folder, head)
    tracemalloc.start()
    try:
        report = verify(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (report.records, report.problems) == (2000, [])
    assert peak < 200_000 < head.size / 5


def test_verify_needs_a_folder(folder):
    with pytest.raises(AuditError, match="is not a folder"):
        verify(folder)
    assert not folder.exists()


def test_a_copy_without_lock_and_key_can_be_verified(three_files, tmp_path):
    copy = shutil.copytree(three_files, tmp_path / "copy", ignore=shutil.ignore_patterns("lock", "prompt.key"))
    assert verify(copy).records == 6 and verify(copy).problems == []


# Tampering


@pytest.mark.parametrize("index", range(5))
def test_an_edited_record_is_found(folder, index):
    fill(folder)
    rewrite(folder / FIRST, lambda old: [*old[:index], old[index].replace(b"decision", b"Decision"), *old[index + 1 :]])
    assert verify(folder).problems == [
        f"{FIRST}, line {index + 1}: does not have the hash of its content: it was edited."
    ]


def test_a_record_with_a_new_hash_is_found_by_the_next(folder):
    written = fill(folder)
    forged = written[1] | {"number": 99}
    forged["hash"] = record_hash(forged)
    rewrite(folder / FIRST, lambda old: [old[0], canonical_line(forged), *old[2:]])
    (problem,) = verify(folder).problems
    assert problem.startswith(f"{FIRST}, line 3: does not follow on the record before it")


def test_a_last_record_with_a_new_hash_is_found_by_the_head(folder):
    written = fill(folder)
    forged = written[-1] | {"number": 9}
    forged["hash"] = record_hash(forged)
    rewrite(folder / FIRST, lambda old: [*old[:-1], canonical_line(forged)])
    assert verify(folder).problems == [f"{FIRST}, line 5: is not the last record that head.json describes."]


def test_the_same_json_written_otherwise_is_found(folder):
    fill(folder)
    rewrite(folder / FIRST, lambda old: [old[0].replace(b'":', b'": ', 1), *old[1:]])
    assert verify(folder).problems[0] == f"{FIRST}, line 1: is not written as the log writes it: it was edited."


@pytest.mark.parametrize("index", range(4))
def test_a_removed_record_is_found(folder, index):
    fill(folder)
    rewrite(folder / FIRST, lambda old: old[:index] + old[index + 1 :])
    found = f"{FIRST}, line {index + 1}: records {index + 1} to {index + 1} are missing before record {index + 2}."
    assert found in verify(folder).problems


@pytest.mark.parametrize("kept", range(5))
def test_a_cut_tail_is_found(folder, kept):
    fill(folder)
    rewrite(folder / FIRST, lambda old: old[:kept])
    (problem,) = verify(folder).problems
    assert problem.startswith(f"{FIRST}: it ends with record {kept}, but head.json counts 5.")


@pytest.mark.parametrize("index", range(6))
def test_an_inserted_copy_is_found(folder, index):
    fill(folder)
    rewrite(folder / FIRST, lambda old: [*old[:index], old[2], *old[index:]])
    assert any("inserted or moved" in problem for problem in verify(folder).problems)


def test_an_inserted_line_that_is_no_record_is_found(folder):
    fill(folder)
    rewrite(folder / FIRST, lambda old: [*old[:2], b"[]\n", *old[2:]])
    assert f"{FIRST}, line 3: is not an audit record." in verify(folder).problems


@pytest.mark.parametrize("index", range(4))
def test_swapped_records_are_found(folder, index):
    fill(folder)
    rewrite(folder / FIRST, lambda old: [*old[:index], old[index + 1], old[index], *old[index + 2 :]])
    problems = verify(folder).problems
    assert problems[0].startswith(f"{FIRST}, line {index + 1}: records {index + 1} to {index + 1} are missing")
    assert "inserted or moved" in problems[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (FIRST, "audit-000002.jsonl, line 1: records 1 to 2 are missing before record 3."),
        ("audit-000002.jsonl", f"{LAST}, line 1: records 3 to 4 are missing before record 5."),
        (LAST, "audit-000002.jsonl: it ends with record 4, but head.json counts 6. What lay behind was cut off."),
    ],
)
def test_a_removed_file_is_found(three_files, name, message):
    (three_files / name).unlink()
    assert verify(three_files).problems == [message]


def test_all_files_removed_are_found(three_files):
    for path in three_files.glob("audit-*"):
        path.unlink()
    (problem,) = verify(three_files).problems
    assert "ends with record 0, but head.json counts 6" in problem


def test_an_emptied_file_is_found(three_files):
    (three_files / "audit-000002.jsonl").write_bytes(b"")
    assert verify(three_files).problems == [f"{LAST}, line 1: records 3 to 4 are missing before record 5."]


def test_a_cut_inside_a_line_is_found(folder):
    fill(folder)
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-10])
    (problem,) = verify(folder).problems
    assert "ends with record 4, but head.json counts 5" in problem


def test_an_unfinished_line_in_an_older_file_is_found(three_files):
    path = three_files / FIRST
    path.write_bytes(path.read_bytes()[:-1])
    assert verify(three_files).problems == [f"{FIRST}, line 2: is not written as the log writes it: it was edited."]


@pytest.mark.parametrize("cut", ["the last record", "half of it", "the last file"])
def test_a_cut_still_shows_after_more_records(three_files, cut):
    path = three_files / LAST
    if cut == "the last file":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"\n") + 1 + (50 if cut == "half of it" else 0)])
    fill(three_files, 3)
    (problem,) = verify(three_files).problems
    assert problem.endswith(
        "records 5 to 6 are missing before record 7."
        if cut == "the last file"
        else "records 6 to 6 are missing before record 7."
    )


def test_a_damaged_last_line_does_not_stop_the_log(folder):
    fill(folder)
    rewrite(folder / FIRST, lambda old: [*old[:-1], b"no json at all\n"])
    fill(folder, 2)
    assert verify(folder).problems == [f"{FIRST}, line 5: is not JSON."]


def test_a_line_longer_than_any_record_is_read_in_pieces(folder):
    fill(folder)
    rewrite(folder / FIRST, lambda old: [*old[:2], b"x" * (5 * 2**19) + b"\n", *old[2:]])
    problems = verify(folder).problems
    assert problems[:3] == [f"{FIRST}, line 3: is not JSON."] * 3
    assert problems[3].startswith(f"{FIRST}, line 4: ")


def test_a_missing_head_is_a_problem_and_stops_the_log(folder):
    fill(folder)
    (folder / "head.json").unlink()
    (problem,) = verify(folder).problems
    assert problem.startswith("head.json is missing")
    log = AuditLog(folder)
    with pytest.raises(AuditError, match="head.json is missing.*Restore it from a backup"):
        log.append("decision")
    assert len(lines(folder)) == 5


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[]\n", b"not json", b"[" * 100_000])
def test_a_damaged_head_is_a_problem_and_stops_the_log(folder, content):
    fill(folder)
    (folder / "head.json").write_bytes(content)
    (problem,) = verify(folder).problems
    assert problem.startswith("head.json was edited or damaged")
    with pytest.raises(AuditError, match="was edited or damaged"):
        AuditLog(folder).append("decision")


@pytest.mark.parametrize("change", [{"file": "../elsewhere.jsonl"}, {"sequence": 0}, {"sequence": -1}, {"size": -1}])
def test_a_head_that_cannot_be_is_not_followed(folder, change):
    fill(folder)
    head = json.loads((folder / "head.json").read_bytes()) | change
    (folder / "head.json").write_bytes(canonical_line(head))
    assert verify(folder).problems
    with pytest.raises(AuditError, match="was edited or damaged"):
        AuditLog(folder).append("decision")
    assert len(lines(folder)) == 5 and not (folder.parent / "elsewhere.jsonl").exists()


def test_a_head_with_another_place_is_found(folder):
    fill(folder)
    head = json.loads((folder / "head.json").read_bytes())
    (folder / "head.json").write_bytes(canonical_line(head | {"size": head["size"] - 1}))
    assert verify(folder).problems == [f"{FIRST}, line 5: is not the last record that head.json describes."]


@pytest.fixture(scope="module")
def small_log(tmp_path_factory) -> dict[str, bytes]:
    """Names and bytes of the files of a log of four records."""
    folder = tmp_path_factory.mktemp("small") / "log"
    fill(folder, 4, max_file_bytes=700)
    return {path.name: path.read_bytes() for path in [*folder.glob("audit-*"), folder / "head.json"]}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_of_a_single_byte_is_found(small_log, data):
    name = data.draw(st.sampled_from(sorted(small_log)))
    content = bytearray(small_log[name])
    place = data.draw(st.integers(0, len(content) - 1))
    new = data.draw(st.none() | st.integers(0, 255).filter(lambda byte: byte != content[place]))
    content[place : place + 1] = b"" if new is None else bytes([new])
    with tempfile.TemporaryDirectory() as copy:
        for other, old in small_log.items():
            Path(copy, other).write_bytes(content if other == name else old)
        assert verify(copy).problems


# Export


def test_an_export_holds_every_line_and_says_that_the_chain_is_whole(three_files, tmp_path):
    report = export(three_files, tmp_path / "out.jsonl")
    *exported, end = (tmp_path / "out.jsonl").read_bytes().splitlines(True)
    assert exported == lines(three_files)
    end = json.loads(end)
    assert (end["event"], end["records"], end["verified"], end["problems"]) == ("export", 6, True, [])
    assert report == verify(three_files)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_an_export_says_what_is_wrong(folder, tmp_path, format):
    fill(folder)
    rewrite(folder / FIRST, lambda old: [old[0], b"damaged\n", *old[2:]])
    report = export(folder, tmp_path / "out", format)
    last = (tmp_path / "out").read_text().splitlines()[-1]
    assert report.problems == [f"{FIRST}, line 2: is not JSON."]
    assert report.problems[0] in last and "false" in last
    assert report.records == 4


def table(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_column_for_every_field(folder, tmp_path):
    log = AuditLog(folder)
    log.append("decision", score=0.25, findings=[{"judge": "a"}], ok=True)
    log.append("review", reviewer="J\u00fcrgen, \u674e", note='two "lines"\n\ud800', score=None)
    export(folder, tmp_path / "out.csv", "csv")
    first, second, end = table(tmp_path / "out.csv")
    assert list(first) == ["sequence", "time", "event", "findings", "note", "ok", "problems", "records", "reviewer"] + [
        "score",
        "verified",
        "previous",
        "hash",
    ]
    assert (first["sequence"], first["score"], first["ok"], first["note"]) == ("1", "0.25", "true", "")
    assert json.loads(first["findings"]) == [{"judge": "a"}]
    assert (second["reviewer"], second["score"]) == ("J\u00fcrgen, \u674e", "null")
    assert second["note"] == 'two "lines"\n\\ud800'
    assert (end["event"], end["records"], end["verified"], end["sequence"]) == ("export", "2", "true", "")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_a_table_holds_no_formula(folder, tmp_path, text):
    AuditLog(folder).append("decision", **{"reviewer": text, "number": -1, text: "name"})
    export(folder, tmp_path / "out.csv", "csv")
    row = table(tmp_path / "out.csv")[0]
    assert row["reviewer"] == "'" + text
    assert row["'" + text] == "name"
    assert row["number"] == "-1"


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_an_export_never_replaces_a_file(three_files, tmp_path, format):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(AuditError, match="out exists. Choose another name"):
        export(three_files, tmp_path / "out", format)
    assert (tmp_path / "out").read_text() == "mine"
    assert not (tmp_path / "out.partial").exists()


def test_two_exports_do_not_write_the_same_file(three_files, tmp_path):
    (tmp_path / "out.partial").write_text("half")
    with pytest.raises(AuditError, match="another export is at work"):
        export(three_files, tmp_path / "out")
    assert (tmp_path / "out.partial").read_text() == "half"


def test_an_export_that_fails_leaves_nothing(three_files, tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        export(three_files, tmp_path / "out")
    assert os.listdir(tmp_path) == ["log"]


def test_an_export_does_not_go_into_the_log(three_files):
    with pytest.raises(AuditError, match="log's own folder"):
        export(three_files, three_files / "audit-000009.jsonl")


def test_an_unknown_format_is_refused(three_files, tmp_path):
    with pytest.raises(AuditError, match="format 'xml'"):
        export(three_files, tmp_path / "out", "xml")


# Command line


@pytest.fixture
def command(root):
    def run(*arguments) -> tuple[int, str, str]:
        tool = [sys.executable, "-m", "krea.audit", *map(str, arguments)]
        done = subprocess.run(tool, cwd=root, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return run


def test_verify_on_the_command_line(three_files, command):
    code, out, _ = command("verify", three_files)
    assert code == 0
    assert "6 records in 3 files" in out and records(three_files)[-1]["hash"] in out and "no problems" in out
    (three_files / FIRST).unlink()
    code, out, _ = command("verify", three_files)
    assert code == 1
    assert "records 1 to 2 are missing before record 3" in out


def test_export_on_the_command_line(three_files, tmp_path, command):
    assert command("export", three_files, tmp_path / "out.jsonl")[0] == 0
    assert command("export", three_files, tmp_path / "out.csv", "--csv")[0] == 0
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 7
    assert len(table(tmp_path / "out.csv")) == 7
    (three_files / FIRST).unlink()
    assert command("export", three_files, tmp_path / "broken.jsonl")[0] == 1


@pytest.mark.parametrize("arguments", [[], ["check"], ["verify"], ["export", "."], ["verify", "no/such/folder"]])
def test_wrong_use_on_the_command_line(command, arguments):
    code, out, error = command(*arguments)
    assert (code, out) == (2, "")
    assert "krea.audit" in error
