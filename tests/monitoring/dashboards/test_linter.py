"""The rules of Grafana's dashboard-linter, and ours: scope in every selector, metrics of the catalog."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest

from mcpmeter.catalog import ALL, budget
from mcpmeter.monitoring.dashboards import made, pages
from mcpmeter.monitoring.dashboards.spec import COLUMNS

DASHBOARDS = {name: json.loads(made(name)) for name in pages()}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COUNTS_UP = {row.name for row in ALL if row.type == "counter"} | {
    f"{row.name}_{part}" for row in ALL if row.type == "histogram" for part in ("bucket", "sum", "count")
}
KNOWN = COUNTS_UP | {row.name for row in ALL if row.type == "gauge"}
OF_THE_PROCESS = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
}
OF_PROMETHEUS = {"up", "scrape_duration_seconds", "scrape_samples_scraped"}
UNITS = {
    "Bps", "bool_on_off", "bool_yes_no", "bytes", "cps", "currencyUSD", "dateTimeFromNow", "none", "percentunit",
    "reqps", "s", "short",
}  # fmt: skip
"""The units in use from Grafana's list: a misspelt one shows a plain number."""

EVERY_DASHBOARD = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=list(DASHBOARDS))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def variables(dashboard: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


def parsed(expr: str) -> Any:
    return promql_parser.parse(expr.replace("$__rate_interval", "1m").replace("$__range", "1h"))


def nodes(expr: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every node and its ancestors, outermost first."""
    yield expr, above
    below = [getattr(expr, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector")]
    for node in [*below, *(getattr(expr, "args", None) or ())]:
        if node is not None and not isinstance(node, str | float):
            yield from nodes(node, (*above, expr))


def selectors(expr: str) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    for node, above in nodes(parsed(expr)):
        if isinstance(node, promql_parser.VectorSelector):
            yield node, above


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in panels(dashboard):
        yield from (target["expr"] for target in panel["targets"])
    yield from (annotation["expr"] for annotation in dashboard["annotations"]["list"])


@EVERY_DASHBOARD
def test_it_can_be_provisioned_from_a_file(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] == 42
    assert re.fullmatch(r"mcpmeter-[a-z]{1,20}", dashboard["uid"])
    assert dashboard["title"].startswith("mcpmeter: ")
    assert dashboard["description"]
    assert dashboard["tags"] == ["mcpmeter"]
    assert dashboard["editable"] is False
    assert "dashboard" not in dashboard


def test_no_two_have_the_same_uid_or_title() -> None:
    for field in ("uid", "title"):
        assert len({dashboard[field] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


@EVERY_DASHBOARD
def test_they_link_to_each_other_with_time_and_variables(dashboard: dict[str, Any]) -> None:
    (link,) = dashboard["links"]
    assert (link["type"], link["tags"]) == ("dashboards", ["mcpmeter"])
    assert link["includeVars"]
    assert link["keepTime"]


@EVERY_DASHBOARD
def test_source_job_instance_and_region_can_be_selected(dashboard: dict[str, Any]) -> None:
    chosen = variables(dashboard)
    assert list(chosen)[:4] == ["datasource", "job", "instance", "region"]
    assert (chosen["datasource"]["type"], chosen["datasource"]["query"]) == ("datasource", "prometheus")
    assert chosen["job"]["allValue"] == chosen["instance"]["allValue"] == ".+"
    for name, variable in chosen.items():
        assert variable["label"]
        if name != "datasource":
            assert variable["datasource"] == SOURCE
            assert (variable["multi"], variable["includeAll"], variable["refresh"]) == (True, True, 2)


def test_team_and_model_can_be_selected_where_useful() -> None:
    assert {"team", "model", "provider"} <= variables(DASHBOARDS["llm_cost"]).keys()
    assert "provider" in variables(DASHBOARDS["upstreams"])
    assert "server" in variables(DASHBOARDS["mcp_servers"])


@EVERY_DASHBOARD
def test_every_variable_is_used_by_some_expression(dashboard: dict[str, Any]) -> None:
    text = " ".join(expressions(dashboard))
    assert [name for name in variables(dashboard) if name != "datasource" and f"${name}" not in text] == []


@EVERY_DASHBOARD
def test_every_panel_has_title_description_unit_and_source(
    dashboard: dict[str, Any],
) -> None:
    titles = [panel["title"] for panel in panels(dashboard)]
    assert sorted(titles) == sorted(set(titles))
    for panel in panels(dashboard):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]
        assert panel["datasource"] == SOURCE
        assert panel["targets"]
        assert all(target["datasource"] == SOURCE for target in panel["targets"])


@EVERY_DASHBOARD
def test_its_first_panel_has_a_text_for_every_value(dashboard: dict[str, Any]) -> None:
    first = panels(dashboard)[0]
    assert first["title"] == "Summary"
    texts = [mapping["options"] for mapping in first["fieldConfig"]["defaults"]["mappings"]]
    assert texts[0]["from"] == 0
    assert [one["to"] + 1 for one in texts[:-1]] == [one["from"] for one in texts[1:]]
    assert texts[-1]["to"] + 1 == 2 ** (len(texts) - 1)
    assert first["targets"][0]["expr"].count("or vector(0)") == len(texts) - 1


@EVERY_DASHBOARD
def test_panels_fill_their_rows_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at.get("x", 0) + x, at.get("y", 0) + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < COLUMNS
        taken |= cells
    for line in {y for _, y in taken}:
        assert sum(y == line for _, y in taken) == COLUMNS, f"grid line {line} has a hole"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@EVERY_DASHBOARD
def test_every_selector_has_the_selected_scope(dashboard: dict[str, Any]) -> None:
    for expr in expressions(dashboard):
        for selector, _ in selectors(expr):
            matchers = {(m.name, m.value) for m in selector.matchers.matchers}
            assert {("job", "$job"), ("instance", "$instance"), ("region", "$region")} <= matchers, expr


@EVERY_DASHBOARD
def test_every_metric_exists(dashboard: dict[str, Any]) -> None:
    names = {selector.name for expr in expressions(dashboard) for selector, _ in selectors(expr)}
    assert names - KNOWN - OF_THE_PROCESS - OF_PROMETHEUS == set()


@EVERY_DASHBOARD
def test_only_counters_are_in_rate_or_increase(dashboard: dict[str, Any]) -> None:
    for expr in expressions(dashboard):
        for selector, above in selectors(expr):
            functions = {node.func.name for node in above if isinstance(node, promql_parser.Call)}
            if selector.name in COUNTS_UP | {"process_cpu_seconds_total"} - {"mcp_ledger_recovered_total"}:
                counted = any(isinstance(n, promql_parser.AggregateExpr) and str(n.op) == "count" for n in above)
                assert functions & {"rate", "increase"} or counted or selector.name == "mcp_ledger_recovered_total", (
                    expr
                )
            else:
                assert not functions & {"rate", "increase"}, expr


def test_gauges_equal_on_all_replicas_are_not_summed() -> None:
    gauges = {row.name for row in budget.ROWS if row.type == "gauge"}
    checked = 0
    for expr in expressions(DASHBOARDS["llm_cost"]):
        for selector, above in selectors(expr):
            if selector.name in gauges:
                checked += 1
                (aggregation, *_) = [node for node in reversed(above) if isinstance(node, promql_parser.AggregateExpr)]
                assert str(aggregation.op) == "max", expr
    assert checked >= len(gauges)


@EVERY_DASHBOARD
def test_a_rate_uses_grafanas_interval(dashboard: dict[str, Any]) -> None:
    for expr in expressions(dashboard):
        for call, window in re.findall(r"\b(rate|irate|increase|changes)\([^\[\]]*\[([^\]]*)\]", expr):
            assert window == ("$__range" if call == "increase" else "$__rate_interval"), expr


@EVERY_DASHBOARD
def test_histogram_panels_show_exemplars(dashboard: dict[str, Any]) -> None:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            wanted = panel["type"] == "timeseries" and "_bucket" in target["expr"]
            assert target.get("exemplar", False) == wanted, panel["title"]


def test_each_side_has_the_same_colour_everywhere() -> None:
    colours: dict[str, set[str]] = {}
    for dashboard in DASHBOARDS.values():
        for panel in panels(dashboard):
            for override in panel["fieldConfig"]["overrides"]:
                for change in override["properties"]:
                    if change["id"] == "color":
                        colours.setdefault(override["matcher"]["options"], set()).add(change["value"]["fixedColor"])
    assert {name for name, used in colours.items() if len(used) > 1} == set()
    assert {"ours", "upstream's", "the tool's", "the caller's"} <= colours.keys()
