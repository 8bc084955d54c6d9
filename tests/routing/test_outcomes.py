"""The table of outcomes: which are retried, and which count against an upstream."""

from __future__ import annotations

import inspect
import typing

import pytest

from mcpmeter import errors
from mcpmeter.catalog import upstream as rows
from mcpmeter.errors import (
    ClientDisconnected,
    InvalidUpstreamResponse,
    MeterError,
    ServiceFault,
    UpstreamDisconnected,
    UpstreamFault,
)
from mcpmeter.errors import UpstreamTimedOut as TimedOut
from mcpmeter.errors import UpstreamUnreachable as Unreachable
from mcpmeter.routing.outcomes import Outcome, is_failure, is_retried, outcome_of_fault, outcome_of_status


def test_only_statuses_that_may_succeed_elsewhere_are_retried() -> None:
    again = {s for s in range(100, 700) if is_retried(outcome_of_status(s), s, after_timeout=True)}
    assert again == {401, 402, 429, 500, 502, 503, 504, 529}


def test_a_status_a_caller_can_provoke_does_not_count() -> None:
    counted = {s for s in range(100, 700) if is_failure(outcome_of_status(s), s)}
    assert not counted & {*range(200, 300), *range(400, 500), 501, 505}
    assert {500, 502, 503, 504, 520, 529} <= counted


@pytest.mark.parametrize(
    ("fault", "outcome", "again", "counted"),
    [
        (Unreachable("x"), "unreachable", True, True),
        (UpstreamDisconnected("x"), "broken", True, True),
        (TimedOut("x"), "timeout", False, True),
        (InvalidUpstreamResponse("x"), "garbage", False, True),
        (ClientDisconnected("x"), "abandoned", False, False),
        (ServiceFault("x"), "abandoned", False, False),
        (KeyboardInterrupt(), "abandoned", False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_faults(fault: BaseException, outcome: Outcome, again: bool, counted: bool) -> None:
    assert outcome_of_fault(fault) == outcome
    assert is_retried(outcome, 0, after_timeout=False) is again
    assert is_failure(outcome, 0) is counted


def test_every_upstream_fault_is_the_upstreams() -> None:
    tree = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, MeterError)]
    assert UpstreamFault in tree
    for error in tree:
        assert (outcome_of_fault(error("x")) == "abandoned") is not issubclass(error, UpstreamFault)


def test_the_metric_labels_are_the_outcomes() -> None:
    outcomes = typing.get_args(Outcome)
    assert outcomes == rows.OUTCOMES
    possible = {"server_error", *(name for name in outcomes if is_retried(name, 0, after_timeout=True))}
    assert possible == set(rows.RETRY_REASONS)
