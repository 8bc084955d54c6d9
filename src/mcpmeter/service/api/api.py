"""The management API's pages: quota, budgets, usage and the API's own description."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.forecast import BudgetStatus
from mcpmeter.budgets.period import Period
from mcpmeter.budgets.view import BudgetReport, shown_budget
from mcpmeter.errors import CallNotFound, InvalidRequest, NotAllowed, ServiceFault, SetupError
from mcpmeter.http.exchange import HttpExchange
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.service.api.keys import HEADERS
from mcpmeter.service.api.openapi import MAX_ROWS, OPERATIONS, ROWS, openapi
from mcpmeter.service.app import Page
from mcpmeter.usage import UsageQuery, UsageReport, grouping, span_of, time_zone
from mcpmeter.usage.call_view import ShownCall

_Read = TypeVar("_Read")

_CALL_ID: Final = re.compile(r"[A-Za-z0-9_]{1,64}")

log = logging.getLogger("mcpmeter")

QueryUsage = Callable[[UsageQuery], Awaitable[UsageReport]]
"""Queries the ledger off the event loop."""

FindCall = Callable[[str], Awaitable[ShownCall | None]]
"""Reads one call from the ledger off the event loop."""

Identify = Callable[[str | None], Caller]
"""Raises NotAuthenticated for a caller without a known key once a key exists."""


class BudgetStatuses(Protocol):
    """The source of budget statuses."""

    def status(self) -> list[BudgetStatus]:
        """Return the status of every budget, in the configuration's order."""


class ApiPages:
    """GET pages of the API. A caller needs a key once one exists."""

    def __init__(
        self,
        quota: QuotaTracker,
        budgets: BudgetStatuses,
        identify: Identify,
        version: str,
        *,
        query_usage: QueryUsage,
        find_call: FindCall,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._quota = quota
        self._budgets = budgets
        self._identify = identify
        self._query_usage = query_usage
        self._find_call = find_call
        self._now = now
        self._description = msgspec.json.encode(openapi(version))

    def routes(self) -> list[tuple[str, Callable[[HttpExchange], Awaitable[Page]]]]:
        """Return (path, handler of GET) pairs."""
        return [
            ("/api/quota", self.quota),
            ("/api/budgets", self.budgets),
            ("/api/usage", self.usage),
            ("/api/call", self.call),
            ("/api/openapi.json", self.openapi),
        ]

    async def quota(self, exchange: HttpExchange) -> Page:
        """`GET /api/quota`: a QuotaReport."""
        self._identify(exchange.secret)
        return Page(msgspec.json.encode(self._quota.report(self._now())), headers=HEADERS)

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
        report = await _read("/api/usage", self._query_usage(query))
        return Page(msgspec.json.encode(report), headers=HEADERS)

    async def call(self, exchange: HttpExchange) -> Page:
        """`GET /api/call`: a ShownCall."""
        caller = self._identify(exchange.secret)
        call_id = _parameters(exchange.query, "/api/call").get("id", "")
        call = await _read("/api/call", self._find_call(call_id)) if _CALL_ID.fullmatch(call_id) else None
        # Another team's call is answered like one that does not exist, so that ids disclose nothing.
        if call is None or not (caller.is_admin or call.team == caller.team):
            raise CallNotFound("The ledger has no such call.", hint="Send ?id= of the header x-mcpmeter-call-id.")
        return Page(msgspec.json.encode(call), headers=HEADERS)

    async def openapi(self, exchange: HttpExchange) -> Page:
        """`GET /api/openapi.json`: OpenAPI 3.1."""
        self._identify(exchange.secret)
        return Page(self._description, headers=HEADERS)


async def _read(path: str, reading: Awaitable[_Read]) -> _Read:
    try:
        return await reading
    except SetupError as fault:
        # The message names files on the server, which callers must not learn.
        log.error("%s cannot read the ledger: %s", path, fault)
        raise ServiceFault("The ledger cannot be read at the moment.", hint="See the service's log.") from None


def _may_see(caller: Caller, status: BudgetStatus) -> bool:
    """A budget over all teams is left out: it would disclose what other teams spend."""
    scope = status.scope
    return caller.is_admin or (
        scope.key_id in ("", caller.key_id) and scope.team in ("", caller.team) and bool(scope.team or scope.key_id)
    )


def usage_query(raw: bytes, caller: Caller, now_ns: int) -> UsageQuery:
    """Parse the query string, restricted to what the caller may see. Raises InvalidRequest, NotAllowed."""
    given = _parameters(raw, "/api/usage")
    team = given.get("team")
    if not caller.is_admin:
        if team not in (None, caller.team):
            raise NotAllowed("This API key sees only its own team's usage.", hint="Use an admin's key.")
        team = caller.team
    zone = time_zone(given.get("time_zone", "UTC"))
    named = {name: given[name] for name in ("since", "until", "month", "last") if name in given}
    this_month = f"{datetime.fromtimestamp(now_ns // 10**9, zone):%Y-%m}"
    by = given.get("by", "team,model")
    return UsageQuery(
        by=tuple(grouping(name) for name in by.split(",")) if by else (),
        span=span_of(**(named or {"month": this_month}), zone=zone, now_ns=now_ns),
        zone=given.get("time_zone", "UTC"),
        team=team,
        limit=_limit(given.get("limit", str(ROWS))),
        cursor=given.get("cursor", ""),
    )


def _parameters(raw: bytes, path: str) -> dict[str, str]:
    pairs = parse_qsl(raw.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=50)
    known = {parameter.name for operation in OPERATIONS if operation.path == path for parameter in operation.parameters}
    names = [name for name, _ in pairs]
    if unknown := sorted(set(names) - known):
        raise InvalidRequest(f"Unknown parameter {unknown[0]!a}.", hint=f"Known ones: {', '.join(sorted(known))}.")
    if len(set(names)) < len(names):
        raise InvalidRequest("A parameter is given twice.", hint="Give each once; separate groupings by commas.")
    return dict(pairs)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MAX_ROWS:
        raise InvalidRequest("Invalid limit.", hint=f"Give a number from 1 to {MAX_ROWS}.")
    return int(text)
