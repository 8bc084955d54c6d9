"""Progress of long work on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import click

LINE_SECONDS: Final = 5.0

Progress = Callable[[str, int, int], None]
"""Takes the task, the amount done and the total amount; a total of 0 is unknown."""


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Shows the progress of long work. Without a terminal, work of less than `LINE_SECONDS` prints nothing."""
    if sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _lines()


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def update(description: str, done: int, total: int) -> None:
            bars.update(task, description=description, completed=done, total=total or None)

        yield update


def _lines() -> Progress:
    printed_at = time.monotonic()

    def update(description: str, done: int, total: int) -> None:
        nonlocal printed_at
        if (now := time.monotonic()) - printed_at >= LINE_SECONDS:
            printed_at = now
            amount = f"{100 * done // total} %" if total else f"{done:,}"
            click.echo(f"{description} ({amount})", err=True)

    return update
