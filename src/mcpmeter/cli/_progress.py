"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import click

LINE_SECONDS: Final = 5.0

Progress = Callable[[str, int, int], None]
"""Told what is done, how far it is and how far it goes; 0 where nobody knows."""


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """What long work tells of itself; work of less than a few seconds is not told off a terminal."""
    if quiet:
        yield lambda what, done, total: None
    elif sys.stderr.isatty():
        with _bar() as told:
            yield told
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

        def told(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total or None)

        yield told


def _lines() -> Progress:
    told_at = time.monotonic()

    def told(what: str, done: int, total: int) -> None:
        nonlocal told_at
        if (now := time.monotonic()) - told_at >= LINE_SECONDS:
            told_at = now
            click.echo(f"{what} ({100 * done // total} %)" if total else f"{what} ({done:,})", err=True)

    return told
