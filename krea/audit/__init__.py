"""The audit log: every decision of the content filter, a line each, written so that a later change shows.

FLUX.1 [dev] Non-Commercial License 2(e) wants every output filtered or reviewed; this is the evidence that it was.

A log is a folder: audit-000001.jsonl and so on, where each record holds the hash of the one before it; head.json,
which says where the last record ends, so that a cut of the end shows, too; prompt.key; and a lock.
Whoever may write in the folder can still make all of it anew, with new hashes. So note the number of records and the
last hash, which `verify` gives, somewhere else from time to time.

Command line: `python3 -m krea.audit verify FOLDER` and `python3 -m krea.audit export FOLDER FILE [--csv]`.
"""

from .log import AuditLog
from .reading import Report, export, verify
from .records import START, AuditError, Head

__all__ = ["START", "AuditError", "AuditLog", "Head", "Report", "export", "verify"]
