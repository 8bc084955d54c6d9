"""No metric lives outside the catalog, and no row of it is without a line of code that feeds it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mcpmeter
from mcpmeter import catalog
from mcpmeter.catalog import ALL, budget, llm, mcp, money, quality, quota, service, upstream

PACKAGE = Path(mcpmeter.__file__).parent
CATALOG = PACKAGE / "catalog"
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if CATALOG not in path.parents}
ROWS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in (budget, mcp, llm, quality, money, upstream, quota, service)
    for name, value in vars(module).items()
    if isinstance(value, catalog.Metric)
}
METRIC_CLASSES = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}
ALERTS = PACKAGE / "monitoring" / "alerts"
"""Their cases are series as a scrape shows them; their expressions are made from rows."""

MAKES_FAMILIES = PACKAGE / "metrics" / "collector.py"

NAME = re.compile(r"\b(?:mcp|gen_ai|mcpmeter)_[a-z0-9_]*[a-z0-9]\b")
SERIES = re.compile(r"_(?:bucket|sum|count|created)$")
FEEDS = {"add", "set", "observe", "ensure", "cell", "histogram", "_cell", "_histogram"}


def texts(tree: ast.AST) -> Iterator[str]:
    """String constants that are not docstrings."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def imported_from_prometheus(tree: ast.AST) -> set[str]:
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prometheus_client")
        for alias in node.names
    }


def test_only_the_collector_uses_prometheus_client_metrics() -> None:
    for path, tree in TREES.items():
        imported = imported_from_prometheus(tree)
        assert not imported & METRIC_CLASSES, path
        if path != MAKES_FAMILIES:
            assert [name for name in imported if name.endswith("MetricFamily")] == [], path
        plain = [
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name.startswith("prometheus_client")
        ]
        assert plain == [], f"{path} must import what it uses of prometheus_client by name"


def test_no_other_file_defines_a_row() -> None:
    made = [
        path
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Metric"
    ]
    assert made == []


def test_no_other_file_spells_a_metrics_name_as_a_value() -> None:
    names = {row.name for row in ALL} | {row.name.removesuffix("_total") for row in ALL}
    others = {path: tree for path, tree in TREES.items() if path.parent != ALERTS}
    spelt = [
        (path.name, text) for path, tree in others.items() for text in texts(tree) if SERIES.sub("", text) in names
    ]
    assert spelt == []


def test_metric_names_in_texts_exist_in_the_catalog() -> None:
    known = {row.name for row in ALL} | {"mcp_cost_usd"}  # the guide's name, which a recording rule keeps answering
    mentioned = {
        name
        for tree in TREES.values()
        for text in texts(tree)
        for name in NAME.findall(text)
        if re.search(r"_(?:total|seconds|usd|ratio|bytes|info|timestamp)(?:_|$)", name)
    }
    assert mentioned, "the demo names one at least, so this scan sees texts"
    assert {SERIES.sub("", name) for name in mentioned} - known == set()


def test_the_catalog_contains_every_row_once() -> None:
    assert sorted(row.name for row in ROWS.values()) == sorted(row.name for row in ALL)
    assert len({id(row) for row in ALL}) == len(ALL)


def fed_rows(tree: ast.AST) -> Iterator[str]:
    """Rows in calls that feed them: `recorder.add(mcp.ERRORS, …)`, `families[mcp.ERRORS.name].cell(…)`."""
    aliases = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "mcpmeter.catalog"
        for alias in node.names
    }
    feeding = {
        id(part)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in FEEDS
        for part in ast.walk(call)
    }
    kept = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.IfExp) for part in ast.walk(node)}
    for node in ast.walk(tree):
        is_row = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
        if is_row and (id(node) in feeding or id(node) in kept):
            yield f"{aliases[node.value.id]}.{node.attr}"


def test_every_row_is_used_outside_the_catalog() -> None:
    found = {name for tree in TREES.values() for name in fed_rows(tree)}
    assert sorted(set(ROWS) - found) == []
