"""Every question of every panel and every operand of every rule has an answer on a live stack, as have the guide's."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path

import httpx2
import pytest
from pictures.queries import Prometheus, fill_variables, is_range
from pictures.stand import REGION, TEAMS, stand

from mcpmeter.monitoring import MonitoringOptions
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.dashboards import made, pages
from mcpmeter.monitoring.dashboards.spec import Panel
from mcpmeter.monitoring.lint.live import selectors
from mcpmeter.monitoring.recording import recording_groups

SECONDS_FOR_EVERY_ANSWER = 120
SECONDS_BETWEEN_LOOKS = 1.0
RANGE_SECONDS = 60
CHOICE = re.compile(r'"query": "label_values\((?P<series>.*), (?P<label>\w+)\)"')

GUIDE = (
    "rate(mcp_requests_total[5m])",
    "histogram_quantile(0.95, rate(mcp_request_duration_seconds_bucket[5m]))",
    "mcp_active_requests",
    "sum by (model) (rate(mcp_tokens_total[5m]))",
    "sum by (model) (mcp_cost_usd)",
    "sum by (error_type) (rate(mcp_errors_total[5m]))",
)
"""Request rate, latency, active requests, tokens, cost and errors, by the names that the guide gives them."""


async def answers(prometheus: Prometheus, expr: str, panel: Panel | None) -> bool:
    """Whether there is a number, as the panel would ask for it: over a time, or now."""
    filled = fill_variables(expr, range_seconds=RANGE_SECONDS)
    if panel is not None and is_range(panel):
        now = time.time()
        found = await prometheus.over(filled, now - 10, now, 1)
    else:
        found = await prometheus.now(filled)
    return any(math.isfinite(value) for series in found for _, value in series.points)


def questions() -> dict[tuple[str, str, str], Panel | None]:
    """(Dashboard, panel, expression) to the panel; without one for what stands outside of panels."""
    asked: dict[tuple[str, str, str], Panel | None] = {("guide", "", expr): None for expr in GUIDE}
    for name, page in pages().items():
        for panel in page.panels:
            asked |= {(name, panel.title, query.expr): panel for query in panel.queries}
        for choice in CHOICE.finditer(made(name)):
            series = choice["series"].replace('\\"', '"')
            asked[name, f"variable {choice['label']}", f"count by ({choice['label']}) ({series})"] = None
    return asked


async def unanswered(prometheus: Prometheus, asked: dict[tuple[str, str, str], Panel | None]) -> Iterable[object]:
    """What has no answer yet when all have been asked again and again for as long as that may take."""
    waiting = dict(asked)
    until = time.monotonic() + SECONDS_FOR_EVERY_ANSWER
    while waiting and time.monotonic() < until:
        for question, panel in list(waiting.items()):
            if await answers(prometheus, question[2], panel):
                del waiting[question]
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    return waiting


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("prometheus_is_here", "ahead_of_others")
async def test_every_target_of_every_panel_and_every_variable_returns_data(tmp_path: Path) -> None:
    async with stand(tmp_path, calls_per_second=12) as live, httpx2.AsyncClient(timeout=120, verify=False) as http:
        prometheus = Prometheus(http, live.prometheus)
        asked = questions()
        assert len(asked) > 100
        assert list(await unanswered(prometheus, asked)) == []

        assert await operands_without_series(prometheus) == []

        await a_choice_narrows(prometheus)
        await exemplars_are_kept(http, live.prometheus)


ONLY_WHEN_IT_IS_SO = ("mcp_upstream_quota_exhaustion_seconds",)
"""Shown while a quota burns faster than it resets."""


async def operands_without_series(prometheus: Prometheus) -> list[str]:
    """Of every rule: the selectors that match nothing, so that the rule could never say anything."""
    options = MonitoringOptions(matchers={"region": REGION})
    expressions = [rule.expr for group in recording_groups(options) for rule in group.rules]
    expressions += [rule.expr for alert in alerts(options) for rule in alert.rules]
    asked = {selector for expr in expressions for selector in selectors(expr)}
    assert len(asked) > 50
    always = sorted(selector for selector in asked if not selector.startswith(ONLY_WHEN_IT_IS_SO))
    return [selector for selector in always if not await prometheus.now(f"count({selector})")]


async def a_choice_narrows(prometheus: Prometheus) -> None:
    (cost,) = (panel for panel in pages()["llm_cost"].panels if panel.title == "Cost by team")

    async def teams(**chosen: str) -> set[str]:
        expr = fill_variables(cost.queries[0].expr, range_seconds=RANGE_SECONDS, **chosen)
        return {series.labels["team"] for series in await prometheus.now(expr)}

    assert await teams() >= set(TEAMS)
    assert await teams(team="search") == {"search"}
    assert await teams(region=REGION) == await teams()
    assert await teams(region="nowhere") == set()
    assert await teams(job="another") == set()


async def exemplars_are_kept(http: httpx2.AsyncClient, address: str) -> None:
    """A point that is drawn on a line leads to the trace of a call that it counts."""
    (latency,) = (panel for panel in pages()["overview"].panels if panel.title == "Latency")
    asked = {
        "query": fill_variables(latency.queries[1].expr, range_seconds=RANGE_SECONDS),
        "start": f"{time.time() - RANGE_SECONDS}",
        "end": f"{time.time()}",
    }
    found = (await http.get(f"{address}/api/v1/query_exemplars", params=asked)).json()["data"]
    traces = {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}
    assert traces
    assert all(re.fullmatch(r"[0-9a-f]{32}", trace) for trace in traces)
