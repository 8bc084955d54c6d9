"""The management API, and `/api/openapi.json`, which is made from the types that it answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl

import msgspec

from mcpmeter.access.callers import Caller
from mcpmeter.access.key_view import ShownKey
from mcpmeter.budgets.forecast import BudgetStatus
from mcpmeter.budgets.period import Period
from mcpmeter.budgets.view import BudgetReport, shown_budget
from mcpmeter.errors import InvalidRequest, NotAllowed, ServiceFault, SetupError
from mcpmeter.http.exchange import Header, HttpExchange
from mcpmeter.ledger.queries.totals import GROUPINGS
from mcpmeter.quota.tracker import QuotaReport, QuotaTracker
from mcpmeter.service.api.keys import KeyList, KeyRevocation, KeyRotation, KeyWithSecret, NewKey
from mcpmeter.service.app import Page
from mcpmeter.usage import UsageQuery, UsageReport, grouping, span_of, time_zone

log = logging.getLogger("mcpmeter")

AskUsage = Callable[[UsageQuery], Awaitable[UsageReport]]
"""Asks the ledger, off the event loop."""

Identify = Callable[[str | None], Caller]
"""Raises NotAuthenticated for a caller without a known key where there are keys."""


class Standings(Protocol):
    """Who knows how budgets stand."""

    def status(self) -> list[BudgetStatus]:
        """Every budget's, in the configuration's order."""


ROWS: Final = 1_000
MAX_ROWS: Final = 10_000
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
class Parameter:
    """What may stand in the query."""

    name: str
    what: str
    example: str


@dataclass(frozen=True, slots=True)
class Operation:
    """What the API does at a path by a verb, as its description names it."""

    path: str
    id: str
    summary: str
    answer: type[msgspec.Struct]
    parameters: tuple[Parameter, ...] = ()
    verb: str = "get"
    request: type[msgspec.Struct] | None = None
    """What the body has to be."""


OPERATIONS: Final = (
    Operation("/api/quota", "getQuota", "What providers say is left of each quota, and for how long.", QuotaReport),
    Operation(
        "/api/budgets",
        "getBudgets",
        "How budgets stand: the caller's team's and key's; an admin sees all.",
        BudgetReport,
    ),
    Operation(
        "/api/usage",
        "getUsage",
        "What was used and what it cost: of the caller's team; an admin sees all.",
        UsageReport,
        (
            Parameter(
                "by", f"Groupings with commas between: {', '.join(GROUPINGS)}. Left out: team,model.", "team,day"
            ),
            Parameter("since", "From this instant on; left out with until, month and last: this month.", "2026-11-01"),
            Parameter("until", "Before this instant.", "2026-11-08T00:00:00Z"),
            Parameter("month", "Instead of since and until: a month.", "2026-11"),
            Parameter("last", "Instead of those: hours, days or weeks up to now.", "7d"),
            Parameter("time_zone", "Whose days and months are meant. Left out: UTC.", "Europe/Berlin"),
            Parameter("team", "Only this team. Others than the caller's own only for an admin.", "search"),
            Parameter("limit", f"Rows on a page, at most {MAX_ROWS}. Left out: {ROWS}.", "100"),
            Parameter("cursor", "next_cursor of the page before.", "WyJzZWFyY2giXQ"),
        ),
    ),
    Operation("/api/keys", "listKeys", "All keys, revoked ones too, without their secrets. For admins.", KeyList),
    Operation(
        "/api/keys",
        "createKey",
        "Make a key; its secret is told only here. For admins; the first key is an admin's, made from this machine.",
        KeyWithSecret,
        verb="post",
        request=NewKey,
    ),
    Operation(
        "/api/keys/rotate",
        "rotateKey",
        "Give a key a new secret, told only here. For admins.",
        KeyWithSecret,
        verb="post",
        request=KeyRotation,
    ),
    Operation("/api/keys/revoke", "revokeKey", "End a key. For admins.", ShownKey, verb="post", request=KeyRevocation),
)


class ApiPages:
    """The API's answers. A caller needs a key as soon as there is one."""

    def __init__(
        self,
        board: QuotaTracker,
        budgets: Standings,
        identify: Identify,
        version: str,
        *,
        ask_usage: AskUsage,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._board = board
        self._budgets = budgets
        self._identify = identify
        self._ask_usage = ask_usage
        self._now = now
        self._description = msgspec.json.encode(openapi(version))

    def routes(self) -> list[tuple[str, Callable[[HttpExchange], Awaitable[Page]]]]:
        """(path, what answers its GET)."""
        return [
            ("/api/quota", self.quota),
            ("/api/budgets", self.budgets),
            ("/api/usage", self.usage),
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

    async def usage(self, exchange: HttpExchange) -> Page:
        """`GET /api/usage`: a UsageReport."""
        caller = self._identify(exchange.secret)
        query = usage_query(exchange.query, caller, self._now())
        try:
            report = await self._ask_usage(query)
        except SetupError as fault:
            # Its sentence names files of the server's, which are not the caller's to know.
            log.error("/api/usage cannot read the ledger: %s", fault)
            raise ServiceFault("The ledger cannot be read now.", hint="The log says why.") from None
        return Page(msgspec.json.encode(report), headers=HEADERS)

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


def usage_query(raw: bytes, caller: Caller, now_ns: int) -> UsageQuery:
    """What is asked for, within what the caller may see. Raises InvalidRequest, NotAllowed."""
    asked = _parameters(raw)
    team = asked.get("team")
    if not caller.is_admin:
        if team not in (None, caller.team):
            raise NotAllowed("This API key sees only its own team's usage.", hint="Ask with an admin's key.")
        team = caller.team
    zone = time_zone(asked.get("time_zone", "UTC"))
    named = {name: asked[name] for name in ("since", "until", "month", "last") if name in asked}
    this_month = f"{datetime.fromtimestamp(now_ns // 10**9, zone):%Y-%m}"
    by = asked.get("by", "team,model")
    return UsageQuery(
        by=tuple(grouping(name) for name in by.split(",")) if by else (),
        span=span_of(**(named or {"month": this_month}), zone=zone, now_ns=now_ns),
        zone=asked.get("time_zone", "UTC"),
        team=team,
        limit=_limit(asked.get("limit", str(ROWS))),
        cursor=asked.get("cursor", ""),
    )


def _parameters(raw: bytes) -> dict[str, str]:
    pairs = parse_qsl(raw.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=50)
    known = {parameter.name for operation in OPERATIONS for parameter in operation.parameters}
    names = [name for name, _ in pairs]
    if unknown := sorted(set(names) - known):
        raise InvalidRequest(f"There is no parameter {unknown[0]!a}.", hint=f"There are {', '.join(sorted(known))}.")
    if len(set(names)) < len(names):
        raise InvalidRequest("A parameter was given twice.", hint="Give each once; groupings with commas between.")
    return dict(pairs)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MAX_ROWS:
        raise InvalidRequest("This limit is none.", hint=f"Give a number from 1 to {MAX_ROWS}.")
    return int(text)


def openapi(version: str) -> dict[str, Any]:
    """The API's description (OpenAPI 3.1.0)."""
    types = {kind for operation in OPERATIONS for kind in (operation.answer, operation.request) if kind} | {Error}
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFS)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.verb] = _described(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mcpmeter",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Needed as soon as the service has a key."}
            },
        },
    }


def _described(operation: Operation, schema_of: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    body = (
        {} if operation.request is None else {"requestBody": {"required": True, **_json(schema_of[operation.request])}}
    )
    return {
        **body,
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [
            {
                "name": parameter.name,
                "in": "query",
                "description": parameter.what,
                "schema": {"type": "string"},
                "example": parameter.example,
            }
            for parameter in operation.parameters
        ],
        "responses": {
            "200": {"description": "The answer.", **_json(schema_of[operation.answer])},
            "default": {"description": "An error.", **_json(schema_of[Error])},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
