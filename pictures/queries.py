"""Asks a Prometheus what a panel would ask it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import httpx2

from mcpmeter.monitoring.dashboards.spec import Panel

EVERYTHING: Final = {
    "job": ".+",
    "instance": ".+",
    "region": ".*",
    "team": ".*",
    "model": ".*",
    "provider": ".*",
    "server": ".*",
}
"""What Grafana puts in for All."""


class Series(NamedTuple):
    """Labels and (time, value) pairs; an instant query gives one pair."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


def filled_in(expr: str, *, range_seconds: int, rate_seconds: int = 15, **chosen: str) -> str:
    """The expression with its variables as Grafana fills them in, all values unless `chosen`."""
    values = {
        **EVERYTHING,
        **chosen,
        "__rate_interval": f"{rate_seconds}s",
        "__range": f"{range_seconds}s",
    }
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    return expr


class Prometheus:
    """Its query API."""

    def __init__(self, http: httpx2.AsyncClient, address: str) -> None:
        self._http = http
        self._address = address

    async def now(self, expr: str) -> list[Series]:
        """An instant query."""
        return [
            Series(found["metric"], ((float(found["value"][0]), float(found["value"][1])),))
            for found in await self._ask("query", {"query": expr})
        ]

    async def over(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """A range query."""
        asked = {"query": expr, "start": f"{start}", "end": f"{end}", "step": f"{step}"}
        return [
            Series(found["metric"], tuple((float(at), float(value)) for at, value in found["values"]))
            for found in await self._ask("query_range", asked)
        ]

    async def _ask(self, what: str, asked: Mapping[str, str]) -> list[dict[str, Any]]:
        told = (await self._http.get(f"{self._address}/api/v1/{what}", params=asked)).json()
        if told["status"] != "success":
            raise ValueError(f"{told['error']}: {asked['query']}")
        result = told["data"]["result"]
        if told["data"]["resultType"] == "scalar":
            return [{"metric": {}, "value": result}]
        found: list[dict[str, Any]] = result
        return found


def is_range(panel: Panel) -> bool:
    """Whether the panel draws lines; the other kinds show the last value."""
    return panel.kind == "timeseries"
