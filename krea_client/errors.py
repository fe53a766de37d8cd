"""What can go wrong, as exception types. Each has the exit code of the command line and a word for programs."""

from __future__ import annotations


class KreaError(Exception):
    """A job or a command failed; the message says what was found and what to do."""

    exit_code = 1
    kind = "error"


class InvalidRequest(KreaError):
    """The request itself is wrong: a field, a reference picture, a job file."""

    exit_code = 2
    kind = "invalid_request"


class ServerUnreachable(KreaError):
    """Nothing answers at the address, or what answers is no ComfyUI."""

    exit_code = 3
    kind = "server_unreachable"


class AccessDenied(ServerUnreachable):
    """The server, or a proxy in front of it, refuses the caller."""

    kind = "access_denied"


class PackMissing(KreaError):
    """The server's ComfyUI has no Flux Krea nodes, or older ones than this client needs."""

    exit_code = 4
    kind = "pack_missing"


class ModelsMissing(KreaError):
    """Model files are not on the server; the message names all of them and where they come from."""

    exit_code = 5
    kind = "models_missing"


class GraphRefused(KreaError):
    """ComfyUI refused the graph, or a part of it, before running it."""

    exit_code = 6
    kind = "graph_refused"


class JobFailed(KreaError):
    """A node failed while the job ran."""

    exit_code = 7
    kind = "job_failed"


class OutOfMemory(JobFailed):
    """The server's memory was too small for the job."""

    exit_code = 8
    kind = "out_of_memory"


BLOCKED_EXIT_CODE = 9  # no exception: the content filter let no picture through, which is a result


class JobInterrupted(KreaError):
    """Somebody cancelled the job on the server."""

    exit_code = 10
    kind = "interrupted"


class TimeLimit(KreaError):
    """The job took longer than it was given; unless only its pictures were late, it was cancelled on the server."""

    exit_code = 11
    kind = "time_limit"


class CannotSave(KreaError):
    """The pictures could not be written here; they are still on the server."""

    exit_code = 12
    kind = "cannot_save"


class DownloadFailed(KreaError):
    """A model file could not be fetched, or is not the one that was expected."""

    exit_code = 13
    kind = "download_failed"


class ExtraMissing(KreaError):
    """A package that only this command needs is not installed; the message names the extra."""

    exit_code = 14
    kind = "extra_missing"


CANCELLED_EXIT_CODE = 130  # Ctrl-C, as shells count it
