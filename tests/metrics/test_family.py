from __future__ import annotations

import pytest

from mcpmeter.catalog import mcp
from mcpmeter.metrics import family as family_module
from mcpmeter.metrics.family import Family


@pytest.mark.parametrize(("row", "kind"), [(mcp.REQUESTS, "cell"), (mcp.REQUEST_DURATION, "histogram")])
def test_a_child_that_somebody_else_makes_meanwhile_is_the_one_that_is_kept(
    monkeypatch: pytest.MonkeyPatch, row: object, kind: str
) -> None:
    family = Family(row)  # type: ignore[arg-type]
    made = {"cell": "Cell", "histogram": "HistogramCell"}[kind]
    real, others = getattr(family_module, made), []

    def let_somebody_in(argument: object) -> object:
        if not others:
            others.append(None)
            others.append(getattr(family, kind)(("x",)))
        return real(argument)

    monkeypatch.setattr(family_module, made, let_somebody_in)
    child = getattr(family, kind)(("x",))
    assert child is others[1]
    assert getattr(family, kind)(("x",)) is child


def test_a_child_stays_the_same_while_values_come() -> None:
    family = Family(mcp.REQUESTS)
    child = family.cell(("a",))
    family.add(("a",), 3)
    child.value += 1
    family.ensure(("a",))
    assert family.cells == {("a",): child}
    assert child.value == 4


def test_only_what_has_a_trace_is_an_exemplar_of_the_moment_that_was_told() -> None:
    child = Family(mcp.REQUEST_DURATION).histogram(("a",))
    child.observe(1)
    assert child.exemplars == {}
    child.observe(2, "t" * 32, 7.5)
    child.observe(3)
    assert (child.counts[0], child.sum, child.exemplars) == (3, 6, {0: ("t" * 32, 2, 7.5)})
