from __future__ import annotations

import pytest

from mcpmeter.catalog import Metric, mcp
from mcpmeter.metrics import family as family_module
from mcpmeter.metrics.family import Family


@pytest.mark.parametrize(("row", "kind"), [(mcp.REQUESTS, "cell"), (mcp.REQUEST_DURATION, "histogram")])
def test_a_child_created_concurrently_is_kept(monkeypatch: pytest.MonkeyPatch, row: Metric, kind: str) -> None:
    family, where = Family(row), dict.fromkeys(row.label_names, "x")
    made = {"cell": "Cell", "histogram": "HistogramCell"}[kind]
    real, created = getattr(family_module, made), []

    def create_concurrently(argument: object) -> object:
        if not created:
            created.append(None)
            created.append(getattr(family, kind)(**where))
        return real(argument)

    monkeypatch.setattr(family_module, made, create_concurrently)
    child = getattr(family, kind)(**where)
    assert child is created[1]
    assert getattr(family, kind)(**where) is child


def test_a_child_is_created_once() -> None:
    family = Family(mcp.REQUESTS)
    where = {"status": "200", "method": "POST", "endpoint": "/mcp"}
    child = family.cell(**where)
    child.value += 4
    family.ensure(**where)
    assert family.cells == {("/mcp", "POST", "200"): child}
    assert child.value == 4


@pytest.mark.parametrize("where", [{}, {"endpoint": "/mcp"}, {"endpoint": "/mcp", "method": "POST", "verb": "POST"}])
def test_labels_of_another_row_are_refused(where: dict[str, str]) -> None:
    with pytest.raises((TypeError, KeyError)):
        Family(mcp.REQUESTS).cell(**where)


def test_only_a_value_with_a_trace_is_an_exemplar() -> None:
    child = Family(mcp.REQUEST_DURATION).histogram(endpoint="/mcp", method="POST")
    child.observe(1)
    assert child.exemplars == {}
    child.observe(2, "t" * 32, 7.5)
    child.observe(3)
    assert (child.counts[0], child.sum, child.exemplars) == (3, 6, {0: ("t" * 32, 2, 7.5)})
