"""The command line: `python3 -m krea.audit`."""

import argparse
import sys

from . import AuditError, export, verify


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns 0 where the chain is whole, 1 with problems; exits with 2 where there is no report."""
    parser = argparse.ArgumentParser(prog="python3 -m krea.audit", description="Check or export an audit log.")
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands verify and export; `run` carries them out."""
    parser.set_defaults(audit=parser)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("verify", help="check every record").add_argument("folder")
    exporting = commands.add_parser("export", help="write all records into one file")
    exporting.add_argument("folder")
    exporting.add_argument("file", help="JSON lines; must not exist yet")
    exporting.add_argument("--csv", action="store_true", help="a table for a spreadsheet")


def run(options: argparse.Namespace) -> int:
    """Verifies or exports as the command line says; the exit code."""
    try:
        if options.command == "verify":
            report = verify(options.folder)
        else:
            report = export(options.folder, options.file, "csv" if options.csv else "jsonl")
    except (AuditError, OSError) as error:
        options.audit.error(str(error))
    span = f", {report.first} to {report.last}" if report.records else ""
    lines = [f"{report.records} records in {report.files} files{span}", f"hash of the last record: {report.hash}"]
    sys.stdout.write("\n".join([*lines, *(report.problems or ["no problems found"])]) + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
