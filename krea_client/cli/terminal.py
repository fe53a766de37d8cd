"""What the command line shows while it waits: on standard error, so that the answer alone goes to the output."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..batch.report import JobOver, WorkerNotice
from ..events import Event, Finished, Notice, Preview, Queued, Started
from ..events import Progress as Step

PREVIEW_WIDTH = 48  # columns


@contextlib.contextmanager
def shown(preview: bool) -> Iterator[Callable[[Event], None]]:
    """Shows a job's events: a bar on a terminal, a few lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _written
        return
    # Words of the server are shown as they are; brackets in them are not rich's markup.
    words = TextColumn("{task.description}", markup=False)
    bar = Progress(SpinnerColumn(), words, BarColumn(), MofNCompleteColumn(), console=console)
    task = bar.add_task("Handing over", total=None)
    picture = _picture_class() if preview else None
    handed_over = False
    with Live(bar, console=console, transient=True, refresh_per_second=8) as live:

        def show(event: Event) -> None:
            nonlocal handed_over
            if isinstance(event, Queued):
                if not handed_over:
                    live.console.print(f"Handed over as job {event.job_id}", style="dim", highlight=False)
                    handed_over = True
                bar.update(task, description=f"Waiting behind {event.ahead}" if event.ahead else "Handed over")
            elif isinstance(event, Started):
                bar.update(task, description="Loading")
            elif isinstance(event, Step):
                bar.update(task, description=event.node.capitalize(), completed=event.step, total=event.steps)
            elif isinstance(event, Preview) and picture:
                live.update(Group(picture(io.BytesIO(event.image), width=PREVIEW_WIDTH, height="auto"), bar))
            elif isinstance(event, Notice):
                live.console.print(event.text, highlight=False, markup=False)

        yield show


@contextlib.contextmanager
def batch_shown() -> Iterator[Callable[[JobOver | WorkerNotice], None]]:
    """Shows how far a batch is: a bar on a terminal, a line for each job elsewhere."""
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("Jobs", total=None)

        def show(event: JobOver | WorkerNotice) -> None:
            if isinstance(event, WorkerNotice):
                line = event.text
            else:
                bar.update(task, completed=event.finished, total=event.total)
                end = event.failure.message if event.failure else event.result.status
                line = f"{event.job}: {end} ({event.finished} of {event.total})"
                if console.is_terminal and not event.failure:
                    return
            bar.console.print(line, highlight=False, markup=False) if console.is_terminal else _say(line)

        yield show


@contextlib.contextmanager
def transfer() -> Iterator[Callable[[str, int, int | None], None]]:
    """Shows downloads: called with a file's name, the bytes that are here and those that it has in all."""
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    tasks = {}
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
                if not console.is_terminal:
                    _say(f"Fetching {name}")
            bar.update(tasks[name], completed=done, total=total)

        yield show


def _written(event: Event) -> None:
    if isinstance(event, Queued):
        _say(f"Handed over as job {event.job_id}" + (f", {event.ahead} jobs come before it" if event.ahead else ""))
    elif isinstance(event, Step) and event.node == "sampler" and event.step in (1, event.steps):
        _say(f"Step {event.step} of {event.steps}")
    elif isinstance(event, Notice):
        _say(event.text)
    elif isinstance(event, Finished):
        _say("Finished")


def _picture_class():
    """Draws pictures by what the terminal can do (Kitty's or Sixel graphics, else coloured half blocks)."""
    try:
        from textual_image.renderable import Image  # asks the terminal when it is imported
    except ZeroDivisionError:  # one that does not know its own size
        return None
    return Image


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
