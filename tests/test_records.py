"""Records are frozen, complete and without behaviour."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter import records
from mcpmeter.records import Charge, LedgerRow, Settlement, Usage

RECORDS = [
    kind
    for kind in vars(records).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
]
every_record = pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)


def a(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any record of a kind, by its annotations."""
    return st.builds(kind, **{name: strategy_of(hint) for name, hint in typing.get_type_hints(kind).items()})


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if hint is int:
        return st.integers(0, 2**63 - 1)  # 64 bits are what the ledger keeps
    if hint in RECORDS:
        return a(hint)
    if isinstance(hint, types.UnionType):
        return st.one_of(map(strategy_of, typing.get_args(hint)))
    return st.from_type(hint)


@every_record
def test_a_record_is_frozen_and_built_by_keywords(kind: type[Any]) -> None:
    assert kind.__struct_config__.frozen
    with pytest.raises(TypeError):
        kind("by position")


@every_record
def test_a_record_has_no_behaviour(kind: type[Any]) -> None:
    own = {name for name, value in vars(kind).items() if inspect.isfunction(value) or isinstance(value, property)}
    assert own == set()


@every_record
def test_money_and_time_are_integers_with_a_unit_in_the_name(kind: type[Any]) -> None:
    hints = typing.get_type_hints(kind)
    assert float not in hints.values()
    for name, hint in hints.items():
        if name.endswith(("_ns", "nanousd")):
            assert hint in (int, int | None), name
        assert not name.endswith(("_seconds", "_ms", "_usd")), name


@given(a(Settlement))
def test_a_settlement_survives_json(settlement: Settlement) -> None:
    written = msgspec.json.encode(settlement)
    assert msgspec.json.decode(written, type=Settlement) == settlement
    assert hash(settlement) == hash(msgspec.json.decode(written, type=Settlement))


@given(a(LedgerRow))
def test_a_row_survives_json(row: LedgerRow) -> None:
    assert msgspec.json.decode(msgspec.json.encode(row), type=LedgerRow) == row


def test_unknown_usage_and_cost_are_marked_so() -> None:
    assert Usage().source == "missing"
    assert (Charge().source, Charge().nanousd) == ("unpriced", 0)
    assert Charge().reported_nanousd is None


def test_a_row_keeps_every_field_of_usage() -> None:
    kept = {field.name for field in msgspec.structs.fields(LedgerRow)}
    in_charges = {"items", "unknown", "conditions"}
    assert {field.name for field in msgspec.structs.fields(Usage)} - {"source"} - in_charges <= kept
