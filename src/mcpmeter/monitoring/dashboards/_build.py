"""Builds Grafana's Classic JSON from pages with Grafana's SDK. Run as a module, it writes `made/` (`make docs`).

The SDK is a development dependency, so no other module may import this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mcpmeter.catalog import Metric, llm, mcp, money, service, upstream
from mcpmeter.monitoring.dashboards import MADE, pages
from mcpmeter.monitoring.dashboards._panels import SOURCE, panel
from mcpmeter.monitoring.dashboards._sdk import JSONEncoder, builders, models
from mcpmeter.monitoring.dashboards.promql import SCOPE, PageQueries
from mcpmeter.monitoring.dashboards.spec import BAD, Page

SCHEMA_VERSION: Final = 42
"""The last version of Classic JSON."""

TAG: Final = "mcpmeter"
VALUES_OF: Final[dict[str, tuple[Metric, str]]] = {
    "team": (money.COST, "Team"),
    "model": (llm.TOKENS, "Model"),
    "provider": (upstream.UP, "Provider"),
    "server": (mcp.SERVER_OPERATION_DURATION, "Server"),
}


def to_json(page: Page) -> str:
    """Indented JSON, stable across runs."""
    made = json.loads(json.dumps(_dashboard(page), cls=JSONEncoder))
    return json.dumps(_without_leftovers(made), indent=2, ensure_ascii=False) + "\n"


def _dashboard(page: Page) -> models.Dashboard:
    made = (
        builders.Dashboard(page.title)
        .uid(page.uid)
        .description(page.description)
        .tags([TAG])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .variables(list(_variables(page)))
        .link(_to_the_others())
        .annotation(_restarts())
    )
    _lay_out(page, made)
    built = made.build()
    built.schema_version = SCHEMA_VERSION
    return built


def _lay_out(page: Page, made: builders.Dashboard) -> None:
    number = 0
    for row in page.rows:
        number += 1
        made.with_row(builders.Row(row.title).id(number))
        for content in row.panels:
            number += 1
            made.with_panel(panel(content, number))


def _variables(page: Page) -> Iterator[builders.DatasourceVariable | builders.QueryVariable]:
    yield builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
    build = service.BUILD_INFO.name
    yield _variable("job", "Job", f"label_values({build}, job)", every=".+")
    yield _variable("instance", "Instance", f'label_values({build}{{job=~"$job"}}, instance)', every=".+")
    # A Prometheus with a single region has no such label; .* matches that too.
    yield _variable("region", "Region", f'label_values({build}{{job=~"$job"}}, region)', every=".*")
    for name in page.wanted:
        row, label = VALUES_OF[name]
        series = f"{row.name}_count" if row.type == "histogram" else row.name
        yield _variable(name, label, f"label_values({series}{{{SCOPE}}}, {name})", every=".*")


def _variable(name: str, label: str, query: str, *, every: str) -> builders.QueryVariable:
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": f"variable-{name}"})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(every)
        .current(everything)
    )


def _to_the_others() -> builders.DashboardLink:
    return (
        builders.DashboardLink("mcpmeter")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )


def _restarts() -> builders.AnnotationQuery:
    started = f"process_start_time_seconds{{{SCOPE}}}[$__rate_interval]"
    return (
        builders.AnnotationQuery()
        .name("Restarts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color(BAD)
        .expr(f"changes({started}) > 0 and on (job, instance) {PageQueries().series(service.BUILD_INFO)}")
        .title_format("Restarted")
        .text_format("{{instance}}")
        .step("1m")
    )


def _without_leftovers(made: Any) -> Any:
    """Remove fields named auto*, which the SDK writes although no panel sets them and no schema has them."""
    if isinstance(made, dict):
        return {k: _without_leftovers(v) for k, v in made.items() if not k.startswith("auto")}
    return [_without_leftovers(item) for item in made] if isinstance(made, list) else made


def main() -> None:
    """Write all dashboards."""
    folder = Path(__file__).parent / MADE
    folder.mkdir(exist_ok=True)
    for name, page in pages().items():
        (folder / f"{name}.json").write_text(to_json(page), encoding="utf-8")


if __name__ == "__main__":
    main()
