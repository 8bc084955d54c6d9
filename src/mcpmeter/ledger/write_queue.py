"""What a ledger's writer takes and gives back, whatever it writes to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from mcpmeter.errors import MeterError
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Call, Settlement


class OpenEntry(msgspec.Struct, gc=False):
    """A row to open."""

    call: Call
    future: asyncio.Future[None]


class SettleEntry(msgspec.Struct, gc=False):
    """A row to settle."""

    settlement: Settlement
    future: asyncio.Future[None]


Row = OpenEntry | SettleEntry
Refusal = MeterError | InsufficientBudget


class Answers(NamedTuple):
    """How a batch of rows ended, handed to the event loop in one piece."""

    kept: Sequence[Row]
    failed: Sequence[tuple[Row, Refusal]]
    commit_s: float


def resolve(future: asyncio.Future[Any], result: object) -> None:
    """Hand over a result, unless whoever waited is gone."""
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Hand over an error, unless whoever waited is gone."""
    if not future.done():
        future.set_exception(error)
