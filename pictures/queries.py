"""Runs a panel's queries on a Prometheus server."""

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
"""Grafana's values for All."""


class Series(NamedTuple):
    """Labels and (time, value) pairs; an instant query returns one pair."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


def fill_variables(expr: str, *, range_seconds: int, rate_seconds: int = 15, **chosen: str) -> str:
    """The expression with its variables replaced as by Grafana: All, unless `chosen`."""
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
    """Client of the query API."""

    def __init__(self, http: httpx2.AsyncClient, address: str) -> None:
        self._http = http
        self._address = address

    async def now(self, expr: str) -> list[Series]:
        """An instant query."""
        return [
            Series(found["metric"], ((float(found["value"][0]), float(found["value"][1])),))
            for found in await self._get("query", {"query": expr})
        ]

    async def over(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """A range query."""
        params = {"query": expr, "start": f"{start}", "end": f"{end}", "step": f"{step}"}
        return [
            Series(found["metric"], tuple((float(at), float(value)) for at, value in found["values"]))
            for found in await self._get("query_range", params)
        ]

    async def _get(self, path: str, params: Mapping[str, str]) -> list[dict[str, Any]]:
        body = (await self._http.get(f"{self._address}/api/v1/{path}", params=params)).json()
        if body["status"] != "success":
            raise ValueError(f"{body['error']}: {params['query']}")
        result: list[dict[str, Any]] = body["data"]["result"]
        return [{"metric": {}, "value": result}] if body["data"]["resultType"] == "scalar" else result


def is_range(panel: Panel) -> bool:
    """Whether the panel draws lines; other kinds show the last value."""
    return panel.kind == "timeseries"
