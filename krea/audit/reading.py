"""Reading a log: whether its chain is whole, and all of it in one file to hand on."""

import csv
import itertools
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .. import files
from .records import (
    HEAD_FILE,
    MAX_LINE_BYTES,
    OWN_FIELDS,
    START,
    AuditError,
    Head,
    canonical_line,
    examine,
    misplaced,
    now,
    read_head,
    read_lines,
    record_files,
)

# What a spreadsheet takes for a formula (owasp.org/www-community/attacks/CSV_Injection), full-width forms included.
FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


@dataclass
class Report:
    """What a look through a log found.

    first, last: times of the first and the last record, UTC in ISO 8601; None without records.
    hash: the last record's.
    problems: a sentence each (file, line, what is wrong); none where the chain is whole.
    """

    records: int = 0
    files: int = 0
    first: str | None = None
    last: str | None = None
    hash: str = START.hash
    problems: list[str] = field(default_factory=list)


def verify(folder: str | os.PathLike) -> Report:
    """Check every record of a log. Changes nothing, takes no lock, holds one line in memory; others may append.

    An unfinished last line is no problem: it is being written, or the next append moves it aside.

    Raises:
        AuditError: there is no such folder.
    """
    report = Report()
    deque(_scan(Path(folder), report), maxlen=0)
    return report


def export(folder: str | os.PathLike, file: str | os.PathLike, format: str = "jsonl") -> Report:
    """Write all records into one file, and behind them the event "export", which says whether the chain is whole.

    A damaged line that is no record is left out; the problems name it.

    Args:
        format: "jsonl"; or "csv", with a column for each field, text as it is (with a ' before what a spreadsheet
            would take for a formula) and other values as JSON.

    Raises:
        AuditError: another format, a file that exists or lies in the log's folder, or no such log.
    """
    folder, file = Path(folder), Path(file)
    if format not in ("jsonl", "csv"):
        raise AuditError(f'Found the format {format!r}. Expected "jsonl" or "csv".')
    if file.resolve().parent == folder.resolve():
        raise AuditError(f"{file} would lie in the log's own folder. Choose another.")
    partial = file.with_name(file.name + ".partial")
    try:
        out = open(partial, "x", encoding="utf-8", errors="backslashreplace", newline="", opener=files.private)
    except FileExistsError:
        raise AuditError(f"{partial} exists: another export is at work. If it was killed, delete the file.") from None
    try:
        with out:
            if file.exists():
                raise AuditError(f"{file} exists. Choose another name, or move it away.")
            report, names = Report(), set()
            for record in _scan(folder, report):
                names.update(record)
            end = {"event": "export", "time": now(), "records": report.records}
            end |= {"verified": not report.problems, "problems": report.problems}
            # Others may append meanwhile; the report is about the records until here.
            rows = itertools.chain(itertools.islice(_scan(folder, Report()), report.records), [end])
            if format == "csv":
                fields = sorted(names.union(end).difference(OWN_FIELDS))
                columns = ["sequence", "time", "event", *fields, "previous", "hash"]
                table = csv.writer(out)
                table.writerow(map(_cell, columns))
                table.writerows([_cell(row[name]) if name in row else "" for name in columns] for row in rows)
            else:
                out.writelines(canonical_line(row).decode() for row in rows)
            files.flush(out)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return report


def _scan(folder: Path, report: Report) -> Iterator[dict]:
    """The records of a log, one after the other, while the report fills."""
    if not folder.is_dir():
        raise AuditError(f"{folder} is not a folder. Give the folder of an audit log.")
    # The head before the list of files, so that what others append meanwhile lies behind it.
    try:
        head = read_head(folder)
    except AuditError as error:
        head = START
        report.problems.append(str(error))
    here = START
    present = record_files(folder)
    for path in present:
        report.files += 1
        here = here._replace(file=path.name, size=0)
        number = 1
        for line in read_lines(path):
            if path == present[-1] and len(line) < MAX_LINE_BYTES and not line.endswith(b"\n"):
                break
            record, problem = examine(line)
            if record is None:
                here = Head(here.sequence + 1, "", path.name, here.size + len(line))
            else:
                problem = problem or misplaced(record, here)
                here = here.after(record, line)
                # That it only ends elsewhere follows from an earlier problem, where there is one.
                if here.sequence == head.sequence and (here.hash != head.hash or here != head and not report.problems):
                    problem = problem or f"is not the last record that {HEAD_FILE} describes"
                report.records += 1
                report.first = report.first or record["time"]
                report.last, report.hash = record["time"], record["hash"]
            if problem:
                report.problems.append(f"{path.name}, line {number}: {problem}.")
            if record is not None:
                yield record
            number += line.endswith(b"\n")
    if here.sequence < head.sequence:
        report.problems.append(
            f"{here.file}: it ends with record {here.sequence}, but {HEAD_FILE} counts {head.sequence}. "
            "What lay behind was cut off."
        )


def _cell(value: object) -> str:
    if not isinstance(value, str):
        return canonical_line(value)[:-1].decode()
    return "'" + value if value.startswith(FORMULA_STARTS) else value
