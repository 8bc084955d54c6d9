"""The management API, and `/api/openapi.json`, which is made from the types that it answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from mcpmeter.access.callers import Caller
from mcpmeter.access.forecast import BudgetStatus
from mcpmeter.access.periods import Period
from mcpmeter.access.shown_budgets import BudgetReport, shown_budget
from mcpmeter.relay.exchange import Header, HttpExchange
from mcpmeter.relay.quota_board import QuotaBoard, QuotaReport
from mcpmeter.service.app import Page

Identify = Callable[[str | None], Caller]
"""Raises NotAuthenticated for a caller without a known key where there are keys."""


class Standings(Protocol):
    """Who knows how budgets stand."""

    def status(self) -> list[BudgetStatus]:
        """Every budget's, in the configuration's order."""


HEADERS: Final[tuple[Header, ...]] = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_REFS: Final = "#/components/schemas/{name}"


class ErrorDetail(msgspec.Struct, rename={"kind": "type"}):
    """What went wrong: `code` is stable (docs/errors.md), `message` says what to do."""

    message: str
    kind: str
    param: str | None
    code: str
    call_id: str


class Error(msgspec.Struct):
    """Every answer that is not 200."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Operation:
    """A GET of the API, as its description names it."""

    path: str
    id: str
    summary: str
    answer: type[msgspec.Struct]


OPERATIONS: Final = (
    Operation("/api/quota", "getQuota", "What providers say is left of each quota, and for how long.", QuotaReport),
    Operation(
        "/api/budgets",
        "getBudgets",
        "How budgets stand: the caller's team's and key's; an admin sees all.",
        BudgetReport,
    ),
)


class ApiPages:
    """The API's answers. A caller needs a key as soon as there is one."""

    def __init__(
        self,
        board: QuotaBoard,
        budgets: Standings,
        identify: Identify,
        version: str,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._board = board
        self._budgets = budgets
        self._identify = identify
        self._now = now
        self._description = msgspec.json.encode(openapi(version))

    def routes(self) -> list[tuple[str, Callable[[HttpExchange], Awaitable[Page]]]]:
        """(path, what answers its GET)."""
        return [
            ("/api/quota", self.quota),
            ("/api/budgets", self.budgets),
            ("/api/openapi.json", self.openapi),
        ]

    async def quota(self, exchange: HttpExchange) -> Page:
        """`GET /api/quota`: a QuotaReport."""
        self._identify(exchange.secret)
        return Page(msgspec.json.encode(self._board.report(self._now())), headers=HEADERS)

    async def budgets(self, exchange: HttpExchange) -> Page:
        """`GET /api/budgets`: a BudgetReport."""
        caller = self._identify(exchange.secret)
        seen = [shown_budget(status) for status in self._budgets.status() if _may_see(caller, status)]
        at = Period("day").local_time(self._now())
        return Page(msgspec.json.encode(BudgetReport(at=at, budgets=seen)), headers=HEADERS)

    async def openapi(self, exchange: HttpExchange) -> Page:
        """`GET /api/openapi.json`: OpenAPI 3.1."""
        self._identify(exchange.secret)
        return Page(self._description, headers=HEADERS)


def _may_see(caller: Caller, status: BudgetStatus) -> bool:
    """Its team's and its key's; one over all teams would tell what others spend."""
    scope = status.scope
    return caller.is_admin or (
        scope.key_id in ("", caller.key_id) and scope.team in ("", caller.team) and bool(scope.team or scope.key_id)
    )


def openapi(version: str) -> dict[str, Any]:
    """The API's description (OpenAPI 3.1.0)."""
    answers = [operation.answer for operation in OPERATIONS]
    schemas, components = msgspec.json.schema_components([*answers, Error], ref_template=_REFS)
    *found, error = schemas
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mcpmeter",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": {
            op.path: {"get": _described(op, schema, error)} for op, schema in zip(OPERATIONS, found, strict=True)
        },
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Needed as soon as the service has a key."}
            },
        },
    }


def _described(operation: Operation, schema: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer.", "content": {"application/json": {"schema": schema}}},
            "default": {"description": "An error.", "content": {"application/json": {"schema": error}}},
        },
    }
