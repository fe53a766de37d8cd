"""Pictures that wait: one ruling each, nothing lost or released twice, whenever the process is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from krea import files, quarantine
from krea.quarantine import NotCarriedOutError, NotWaitingError, Quarantine

FACTS = {"prefix": "Krea", "reasons": ["Open NSFW finds sexual content: 0.500, review from 0.2."]}


class Studio:
    """A quarantine with its records and its output folder."""

    def __init__(self, root: Path):
        self.output, self.records = root / "output", []
        self.output.mkdir(exist_ok=True)
        self.quarantine = Quarantine(root / "quarantine", lambda *record: self.records.append(record), self.place)

    def place(self, case) -> Path:
        number = 1
        while (path := self.output / f"{case.facts['prefix']}_{number:05}_.png").exists():
            number += 1
        return path

    def released(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.output.glob("*.png"))]


@pytest.fixture
def studio(tmp_path):
    return Studio(tmp_path)


def test_a_held_picture_waits_with_its_facts_across_restarts(studio, tmp_path):
    held = [studio.quarantine.hold(name.encode(), ".png", FACTS | {"name": name}) for name in "abc"]
    again = Studio(tmp_path).quarantine
    assert again.waiting() == held
    assert again.picture(held[1].id) == (held[1], b"b")
    assert studio.released() == [] and studio.records == []


def test_an_approved_picture_is_released_as_it_was_held(studio):
    case = studio.quarantine.hold(b"picture", ".png", FACTS)
    ruling = studio.quarantine.rule(case.id, True, "ann", "fine")
    assert Path(ruling.released).read_bytes() == b"picture"
    ((recorded, first),) = studio.records
    assert recorded == case and (first.approved, first.reviewer, first.note) == (True, "ann", "fine")
    assert studio.quarantine.waiting() == [] and os.listdir(studio.quarantine.folder) == []


def test_a_rejected_picture_is_deleted(studio):
    case = studio.quarantine.hold(b"picture", ".png", FACTS)
    assert studio.quarantine.rule(case.id, False, "ann", "").released is None
    assert studio.released() == [] and os.listdir(studio.quarantine.folder) == []
    assert len(studio.records) == 1


def test_of_many_reviewers_at_once_one_decides(studio):
    case = studio.quarantine.hold(b"picture", ".png", FACTS)

    def decide(number):
        try:
            return studio.quarantine.rule(case.id, number % 2 == 0, str(number), "")
        except NotWaitingError:
            return None

    with ThreadPoolExecutor(8) as pool:
        rulings = [ruling for ruling in pool.map(decide, range(40)) if ruling]
    assert len(rulings) == len(studio.records) == 1
    assert len(studio.released()) == rulings[0].approved


@pytest.mark.parametrize(
    "case_id", ["", "..", "../../etc/passwd", "0" * 31, "0" * 32, "A" * 32, ".partial-" + "0" * 32]
)
def test_an_id_that_is_none_names_nothing(studio, case_id):
    studio.quarantine.hold(b"picture", ".png", FACTS)
    with pytest.raises(NotWaitingError):
        studio.quarantine.picture(case_id)
    with pytest.raises(NotWaitingError):
        studio.quarantine.rule(case_id, True, "ann", "")


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(studio):
    case = studio.quarantine.hold(b"picture", ".png", FACTS)
    free = studio.place(case)
    places = iter([free, studio.output / "other.png"])
    studio.quarantine = Quarantine(studio.quarantine.folder, lambda *_: None, lambda _: next(places))
    free.write_bytes(b"another")
    studio.quarantine.rule(case.id, True, "ann", "")
    assert sorted(studio.released()) == [b"another", b"picture"]


@pytest.mark.parametrize("stop", ["record", "place", "release", "remove"])
def test_what_was_decided_is_settled_after_a_failure(studio, tmp_path, monkeypatch, stop):
    case = studio.quarantine.hold(b"picture", ".png", FACTS)

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        if stop == "record":
            patch.setattr(studio.quarantine, "_record", fail)
        elif stop == "place":
            patch.setattr(studio.quarantine, "_place", fail)
        elif stop == "release":
            create = files.create
            patch.setattr(
                files, "create", lambda path, data: fail() if path.parent == studio.output else create(path, data)
            )
        else:
            patch.setattr("krea.quarantine.shutil.rmtree", fail)
            patch.setattr("krea.quarantine.os.rename", fail)
        with pytest.raises(NotCarriedOutError, match="no space"):
            studio.quarantine.rule(case.id, True, "ann", "")
    assert studio.quarantine.waiting() == []
    again = Studio(tmp_path)
    again.quarantine.resume()
    assert again.released() == [b"picture"]
    assert again.records and os.listdir(again.quarantine.folder) == []


WORKER = """
import sys; sys.path[:0] = {path!r}
from pathlib import Path
from tests.unit.test_quarantine import FACTS, Studio
studio = Studio(Path({root!r}))
studio.quarantine.resume()
for number in range(10**6):
    held = studio.quarantine.hold(b"%d" % number * 4000, ".png", FACTS | {{"number": number}})
    print("held", number, flush=True)
    if number % 2:
        studio.quarantine.rule(held.id, True, "ann", "")
        print("released", number, flush=True)
"""


def test_nothing_is_lost_or_released_twice_when_the_process_is_killed(tmp_path):
    rng = random.Random(0)
    root = Path(__file__).parents[2]
    for turn in range(6):
        folder = tmp_path / str(turn)
        folder.mkdir()
        code = WORKER.format(path=[str(root)], root=str(folder))
        worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
        worker.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        worker.send_signal(signal.SIGKILL)
        said = [line.split() for line in worker.stdout.read().splitlines()] + [["held", "0"]]
        worker.wait()
        held = {int(number) for word, number in said if word == "held"}
        released = {int(number) for word, number in said if word == "released"}
        studio = Studio(folder)
        studio.quarantine.resume()
        waiting = [case.facts["number"] for case in studio.quarantine.waiting()]
        found = [int(data[: len(data) // 4000]) for data in studio.released()]
        assert len(set(found)) == len(found) and released <= set(found)
        assert held <= {*waiting, *found}
        for case in studio.quarantine.waiting():
            assert studio.quarantine.picture(case.id)[1] == b"%d" % case.facts["number"] * 4000


def test_one_case_that_cannot_be_settled_holds_up_no_other(studio, tmp_path, monkeypatch):
    bad, good = (studio.quarantine.hold(name, ".png", FACTS) for name in (b"bad", b"good"))
    monkeypatch.setattr(files, "create", dying_after(files.create, 1))
    for case in (bad, good):
        with pytest.raises(RuntimeError):
            studio.quarantine.rule(case.id, True, "Ana", "")
        monkeypatch.setattr(files, "create", dying_after(CREATE, 1))
    monkeypatch.undo()
    (studio.quarantine.folder / bad.id / "picture.png").unlink()
    again = Studio(tmp_path)
    [failure] = again.quarantine.resume()
    assert isinstance(failure, FileNotFoundError)
    assert again.released() == [b"good"] and again.quarantine.waiting() == []


def test_a_damaged_record_hides_no_other_case(studio, caplog):
    bad, good = (studio.quarantine.hold(name, ".png", FACTS) for name in (b"bad", b"good"))
    (studio.quarantine.folder / bad.id / "case.json").write_text("")
    assert studio.quarantine.waiting() == [good]
    assert bad.id in caplog.text and "cannot be read" in caplog.text


@pytest.mark.parametrize("content", [b'{"facts": []}', b"[]", b"{"])
def test_what_is_no_case_hides_none(studio, content):
    case = studio.quarantine.hold(b"a", ".png", FACTS)
    record = (studio.quarantine.folder / case.id / "case.json").read_bytes()
    (studio.quarantine.folder / ("0" * 32)).write_text("a file")
    (studio.quarantine.folder / ("1" * 32) / "case.json").mkdir(parents=True)
    (studio.quarantine.folder / ("2" * 32)).mkdir()
    (studio.quarantine.folder / ("2" * 32) / "case.json").write_bytes(content)
    (studio.quarantine.folder / ("3" * 32)).mkdir()
    wrong = record.replace(b'"held": "', b'"held": null, "was": "')
    (studio.quarantine.folder / ("3" * 32) / "case.json").write_bytes(wrong)
    assert studio.quarantine.waiting() == [case]


def test_a_leftover_that_cannot_be_removed_holds_up_nothing(studio, monkeypatch, caplog):
    def denied(*_):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(quarantine.shutil, "rmtree", denied)
        case = studio.quarantine.hold(b"a", ".png", FACTS)
        assert studio.quarantine.rule(case.id, True, "Ana", "").approved
        assert studio.quarantine.resume() == []
        waiting = studio.quarantine.hold(b"b", ".png", FACTS)
    assert studio.released() == [b"a"] and "cannot be removed" in caplog.text
    assert studio.quarantine.resume() == [] and os.listdir(studio.quarantine.folder) == [waiting.id]


def test_a_picture_that_is_not_the_one_that_was_held_is_not_released(studio):
    case = studio.quarantine.hold(b"a", ".png", FACTS)
    (studio.quarantine.folder / case.id / "picture.png").write_bytes(b"another")
    for decide in (lambda: studio.quarantine.picture(case.id), lambda: studio.quarantine.rule(case.id, True, "", "")):
        with pytest.raises(ValueError, match="is not the picture that was held"):
            decide()
    assert studio.quarantine.waiting() == [case] and studio.released() == studio.records == []
    studio.quarantine.rule(case.id, False, "Ana", "")
    assert studio.quarantine.waiting() == []


def test_a_case_whose_picture_is_gone_is_not_approved(studio):
    case = studio.quarantine.hold(b"a", ".png", FACTS)
    (studio.quarantine.folder / case.id / "picture.png").unlink()
    with pytest.raises(FileNotFoundError, match="picture.png"):
        studio.quarantine.rule(case.id, True, "Ana", "")
    assert studio.quarantine.waiting() == [case] and studio.records == []


def test_a_decision_that_was_claimed_and_never_written_is_none(studio):
    case = studio.quarantine.hold(b"a", ".png", FACTS)
    (studio.quarantine.folder / case.id / "ruling.json").touch()
    assert studio.quarantine.waiting() == [case]
    assert studio.quarantine.resume() == []
    studio.quarantine.rule(case.id, True, "Ana", "")
    assert studio.released() == [b"a"]


def test_a_rejected_picture_is_gone_after_a_kill_too(studio, tmp_path, monkeypatch):
    case = studio.quarantine.hold(b"a", ".png", FACTS)
    with monkeypatch.context() as killed:
        killed.setattr(quarantine.shutil, "rmtree", dying_after(quarantine.shutil.rmtree, 0))
        with pytest.raises(RuntimeError):
            studio.quarantine.rule(case.id, False, "Ana", "")
    assert list(tmp_path.rglob("picture.png")), "the kill came before the removal"
    Studio(tmp_path).quarantine.resume()
    assert not list(tmp_path.rglob("picture.png"))


CREATE = files.create


def dying_after(function, calls: int):
    """The function, which does its work so often and then raises, as a kill would end it."""
    left = [calls]

    def dying(*arguments, **settings):
        if not left[0]:
            raise RuntimeError("killed")
        left[0] -= 1
        return function(*arguments, **settings)

    return dying
