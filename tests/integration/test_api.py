"""The management API: answers that its own description allows, and only for who has a key."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from tests.http.fakes import Transport, cycle_on

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.budget import Budget
from mcpmeter.budgets.forecast import BudgetStatus, status_of
from mcpmeter.budgets.period import Period
from mcpmeter.catalog import ALL
from mcpmeter.catalog import quota as rows
from mcpmeter.errors import NotAuthenticated
from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.meter import Meter
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.quota.tracker import QuotaReport, QuotaTracker
from mcpmeter.records import Balance, Scope
from mcpmeter.service.api.api import ApiPages
from mcpmeter.service.api.openapi import OPERATIONS
from mcpmeter.service.app import App, HostGuard, PageEndpoint
from mcpmeter.usage import UsageQuery, UsageReport, usage_report
from mcpmeter.usage.call_view import ShownCall, call_view

KEY = "mk_a-key-that-this-service-knows"
USD = 10**9
NOVEMBER = int(datetime(2026, 11, 1, 4, 30, tzinfo=UTC).timestamp()) * 10**9
NOW = int(datetime(2026, 11, 22, 11, 0, 0, tzinfo=UTC).timestamp()) * 10**9
HEADERS = {
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9000",
    "x-ratelimit-reset-requests": "1m30.951s",
    "x-ratelimit-remaining-tokens": "9223372036854775807",
    "retry-after": "2",
}


CALLERS = {
    KEY: Caller(team="operations", role="admin"),
    "mk_of-search": Caller(team="search", key_id="key_0123456789ab"),
    "mk_of-support": Caller(team="support", key_id="key_ba9876543210"),
}


def identify(secret: str | None) -> Caller:
    if secret not in CALLERS:
        raise NotAuthenticated("This API key is not known here.")
    return CALLERS[secret]


def status(name: str, **scope: str) -> BudgetStatus:
    """Half spent of ten dollars, in November 2026 of Berlin."""
    budget = Budget(name, Scope(**scope), 10 * USD, Period("month", "Europe/Berlin"))
    claim = budget.reservation(0, NOW)
    balance = Balance(
        balance=claim.balance,
        unit="nanousd",
        period_start_ns=claim.period_start_ns,
        period_end_ns=claim.period_end_ns,
        spent=5 * USD,
        reserved=USD // 2,
        credit=0,
        carried=0,
    )
    return status_of(budget, balance, 6 * USD, NOW)


class Budgets:
    """Budgets that stand still."""

    def __init__(self) -> None:
        self.statuses: list[BudgetStatus] = []

    def status(self) -> list[BudgetStatus]:
        return self.statuses


class Api:
    """The API behind the service's own application."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger
        self.asked: list[UsageQuery] = []
        recorder = Recorder(rows=tuple(dict.fromkeys((*ALL, *rows.ROWS))))
        self.board = QuotaTracker(recorder)
        self.budgets = Budgets()
        pages = ApiPages(
            self.board,
            self.budgets,
            identify,
            "1.2.3",
            query_usage=self.ask_usage,
            find_call=self.find_call,
            now=lambda: NOW,
        )
        meter = Meter(recorder)
        routes = {path: {"GET": PageEndpoint(meter, path, make)} for path, make in pages.routes()}
        self.paths = list(routes)
        self._app = App(meter, routes, HostGuard(["localhost"]))

    async def find_call(self, call_id: str) -> ShownCall | None:
        return call_view(self.ledger, call_id)

    async def ask_usage(self, query: UsageQuery) -> UsageReport:
        self.asked.append(query)
        return usage_report(self.ledger, query)

    async def get(self, path: str, key: str | None = KEY) -> tuple[int, dict[str, str], Any]:
        transport = Transport()
        scope = {
            "method": "GET",
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "headers": [(b"host", b"localhost"), *([(b"authorization", f"Bearer {key}".encode())] if key else [])],
        }
        cycle = cycle_on(transport, scope)
        await self._app(cycle.scope, cycle.receive, cycle.send)
        response, _, body = transport.written.decode().partition("\r\n\r\n")
        status, *lines = response.split("\r\n")
        return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), json.loads(body)


@pytest.fixture
def api(tmp_path: Path) -> Api:
    """On a ledger of six calls: two of each team on the 1st, the 2nd and the 3rd of November 2026."""
    ledger = tmp_path / "ledger.db"
    insert = (
        "INSERT INTO calls (id, state, started_at_ns, ended_at_ns, endpoint, method, team, key_id, parent_id, trace_id,"
        " provider, model, operation, stream, prompt_tokens_estimate, outcome, token_source, cost_nanousd, cost_source)"
        " VALUES (?, 'settled', ?, 1, '', '', ?, '', '', '', 'openai', ?, 'chat', 0, 0, 'ok', 'reported', 7, 'listed')"
    )
    with open_writer(ledger) as writer:
        for day in range(3):
            for team in ("search", "support"):
                started = NOVEMBER + day * 86_400 * 10**9
                writer.execute(insert, (f"call_{day}_{team}", started, team, f"m{day}"))
    return Api(ledger)


async def test_quotas_are_told_with_instants_and_durations(api: Api) -> None:
    api.board.note("openai", "openai-1", HEADERS, "openai", now=NOW)
    status, headers, body = await api.get("/api/quota")
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert body == {
        "at": "2026-11-22T11:00:00Z",
        "quotas": [
            {
                "provider": "openai",
                "credential": "openai-1",
                "resource": "requests",
                "limit": 10000,
                "remaining": 9000,
                "reset_at": "2026-11-22T11:01:30.951000Z",
                "resets_in_seconds": 90.951,
                "burn_per_second": None,
                "exhausted_in_seconds": None,
                "reported_at": "2026-11-22T11:00:00Z",
            },
            {
                "provider": "openai",
                "credential": "openai-1",
                "resource": "retry_after",
                "limit": None,
                "remaining": None,
                "reset_at": "2026-11-22T11:00:02Z",
                "resets_in_seconds": 2.0,
                "burn_per_second": None,
                "exhausted_in_seconds": None,
                "reported_at": "2026-11-22T11:00:00Z",
            },
        ],
    }
    assert msgspec.convert(body, QuotaReport) == api.board.report(NOW)


async def test_before_any_answer_there_is_an_empty_list(api: Api) -> None:
    status, _, body = await api.get("/api/quota")
    assert (status, body) == (200, {"at": "2026-11-22T11:00:00Z", "quotas": []})


@pytest.mark.parametrize("key", [None, "", "mk_another"])
async def test_nothing_is_told_without_a_known_key(api: Api, key: str | None) -> None:
    api.board.note("openai", "openai-1", HEADERS, "openai", now=NOW)
    for path in api.paths:
        status, _, body = await api.get(path, key)
        assert status == 401
        assert body["error"]["code"] == "not_authenticated"
        assert "openai" not in json.dumps(body)


async def test_budgets_are_told_in_dollars_and_by_the_clocks_of_their_zone(api: Api) -> None:
    api.budgets.statuses = [status("search", team="search")]
    code, headers, body = await api.get("/api/budgets")
    assert (code, headers["cache-control"]) == (200, "no-store")
    assert body == {
        "at": "2026-11-22T11:00:00Z",
        "budgets": [
            {
                "name": "search",
                "team": "search",
                "project": "",
                "key_id": "",
                "model": "",
                "hard": True,
                "period": "month",
                "time_zone": "Europe/Berlin",
                "period_start": "2026-11-01T00:00:00+01:00",
                "resets_at": "2026-12-01T00:00:00+01:00",
                "limit_usd": "10.00",
                "credit_usd": "0.00",
                "soft_limit_usd": "8.00",
                "spent_usd": "5.00",
                "reserved_usd": "0.50",
                "left_usd": "4.50",
                "burn_usd_per_hour": "1.00",
                "exhausted_at": "2026-11-22T16:30:00+01:00",
            }
        ],
    }


@pytest.mark.parametrize(
    ("key", "seen"),
    [
        (KEY, ["all", "search", "search-key", "support", "key-alone", "model"]),
        ("mk_of-search", ["search", "search-key", "key-alone"]),
        ("mk_of-support", ["support"]),
    ],
)
async def test_a_caller_sees_budgets_of_its_team_and_key_an_admin_all(api: Api, key: str, seen: list[str]) -> None:
    api.budgets.statuses = [
        status("all"),
        status("search", team="search"),
        status("search-key", team="search", key_id="key_0123456789ab"),
        status("support", team="support"),
        status("key-alone", key_id="key_0123456789ab"),
        status("model", model="gpt-4.1"),
    ]
    _, _, body = await api.get("/api/budgets", key)
    assert [budget["name"] for budget in body["budgets"]] == seen


class TestUsage:
    async def test_an_admin_sees_all_teams_and_another_caller_its_own(self, api: Api) -> None:
        status, _, everything = await api.get("/api/usage?by=team&month=2026-11")
        assert status == 200
        assert [(row["team"], row["calls"], row["cost_usd"]) for row in everything["rows"]] == [
            ("search", 3, "0.000000021"),
            ("support", 3, "0.000000021"),
        ]
        assert (everything["team"], everything["total"]["cost_nanousd"]) == (None, 42)
        for path in ("/api/usage?by=team", "/api/usage?by=team&team=search"):
            _, _, own = await api.get(path, "mk_of-search")
            assert (own["team"], [row["team"] for row in own["rows"]], own["total"]["calls"]) == (
                "search",
                ["search"],
                3,
            )
        _, _, one = await api.get("/api/usage?by=team&team=support")
        assert [row["team"] for row in one["rows"]] == ["support"]

    async def test_another_teams_usage_is_not_told(self, api: Api) -> None:
        status, _, refused = await api.get("/api/usage?team=support", "mk_of-search")
        assert (status, refused["error"]["code"]) == (403, "not_allowed")
        assert api.asked == []

    async def test_pages_in_a_stable_order_hold_every_row_once(self, api: Api) -> None:
        seen, path = [], "/api/usage?by=team,day,model&limit=2"
        cursor = ""
        for _ in range(3):
            _, _, page = await api.get(f"{path}{cursor}")
            assert len(page["rows"]) == 2
            assert page["total"]["calls"] == 6
            seen += [(row["team"], row["day"]) for row in page["rows"]]
            cursor = f"&cursor={page['next_cursor']}"
        assert page["next_cursor"] is None
        assert seen == [(team, f"2026-11-0{day}") for team in ("search", "support") for day in (1, 2, 3)]

    async def test_it_is_this_month_unless_another_period_is_asked_for(self, api: Api) -> None:
        _, _, body = await api.get("/api/usage?by=")
        assert (body["since"], body["until"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
        _, _, body = await api.get("/api/usage?since=2026-11-02&until=2026-11-03T00:00:00Z")
        assert body["total"]["calls"] == 2
        _, _, body = await api.get("/api/usage?last=24h")
        assert (body["until"], body["total"]["calls"]) == ("2026-11-22T11:00:00Z", 0)

    async def test_days_are_those_of_the_time_zone(self, api: Api) -> None:
        _, _, body = await api.get("/api/usage?by=day&month=2026-11&time_zone=America/New_York&team=search")
        assert [row["day"] for row in body["rows"]] == ["2026-11-01", "2026-11-01", "2026-11-02"][1:]
        assert body["since"] == "2026-11-01T04:00:00Z"

    @pytest.mark.parametrize(
        "query",
        [
            "by=colour",
            "by=team,",
            "month=2026-13",
            "month=2026-11&last=7d",
            "since=2026-11-02&until=2026-11-01",
            "since=yesterday",
            "last=7",
            "time_zone=Mars/Olympus",
            "time_zone=../../etc/passwd",
            "limit=0",
            "limit=10001",
            "limit=%C2%B2",
            "cursor=!!",
            "cursor=WyJhIl0",
            "by=team&by=model",
            "colour=red",
        ],
    )
    async def test_a_question_that_makes_no_sense_is_refused_by_name(self, api: Api, query: str) -> None:
        status, _, body = await api.get(f"/api/usage?{query}")
        assert (status, body["error"]["code"]) == (400, "invalid_request")

    async def test_a_ledger_that_cannot_be_read_is_our_fault_and_its_path_stays_here(self, api: Api) -> None:
        api.ledger = api.ledger.with_name("absent.db")
        status, _, body = await api.get("/api/usage")
        assert status == 500
        assert "absent.db" not in json.dumps(body)

    async def test_it_is_what_its_description_says(self, api: Api) -> None:
        _, _, described = await api.get("/api/openapi.json")
        schema = TestDescription().schema(described, "/api/usage", "200")
        _, _, body = await api.get("/api/usage?by=team,project,model,provider,key,day,outcome")
        assert len(body["rows"]) == 6
        schema.validate(body)
        assert not schema.is_valid({**body, "total": {**body["total"], "cost_usd": 0.1}})
        names = {parameter["name"] for parameter in described["paths"]["/api/usage"]["get"]["parameters"]}
        assert names == {"by", "since", "until", "month", "last", "time_zone", "team", "limit", "cursor"}


class TestOneCall:
    async def test_it_is_shown_line_by_line_to_its_team_only(self, api: Api) -> None:
        lines = '[["web_search",2,7,"10/1000","l","listed"],["code_session",1,null]]'
        with open_writer(api.ledger) as writer:
            insert = 'INSERT INTO charges VALUES (?, 1, ?, \'[["usage.new",4]]\', \'{"tier":"flex"}\', 2, 0, 5, 7)'
            writer.execute(insert, ("call_1_search", lines))
        _, _, described = await api.get("/api/openapi.json")
        for key in (KEY, "mk_of-search"):
            status, _, call = await api.get("/api/call?id=call_1_search", key)
            assert (status, call["team"], call["conditions"]) == (200, "search", {"tier": "flex"})
            assert [(line["item"], line["quantity"], line["cost_usd"]) for line in call["lines"]] == [
                ("web_search", 2, "0.000000007"),
                ("code_session", 1, None),
            ]
            assert [line["item"] for line in call["unpriced_items"]] == ["usage.new"]
            TestDescription().schema(described, "/api/call", "200").validate(call)

    @pytest.mark.parametrize("query", ["id=call_1_support", "id=call_9", "id=", "", "id=%00", "id=" + "9" * 65])
    async def test_another_teams_call_looks_like_one_that_does_not_exist(self, api: Api, query: str) -> None:
        status, _, body = await api.get(f"/api/call?{query}", "mk_of-search")
        assert (status, body["error"]["code"]) == (404, "call_not_found")


class TestDescription:
    def schema(self, description: dict[str, Any], path: str, answer: str) -> Draft202012Validator:
        responses = description["paths"][path]["get"]["responses"]
        reference = responses[answer]["content"]["application/json"]["schema"]
        return Draft202012Validator({**reference, "components": description["components"]})

    async def test_it_is_openapi_and_names_every_operation_and_this_version(self, api: Api) -> None:
        status, _, described = await api.get("/api/openapi.json")
        assert status == 200
        assert described["openapi"] == "3.1.0"
        assert described["info"]["version"] == "1.2.3"
        named = {(path, verb) for path, verbs in described["paths"].items() for verb in verbs}
        assert named == {(operation.path, operation.verb) for operation in OPERATIONS}
        assert len({operation.id for operation in OPERATIONS}) == len(named) == len(OPERATIONS)
        for schema in described["components"]["schemas"].values():
            Draft202012Validator.check_schema(schema)

    async def test_every_reference_leads_somewhere(self, api: Api) -> None:
        _, _, described = await api.get("/api/openapi.json")
        text = json.dumps(described)
        named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
        assert named == set(described["components"]["schemas"])

    async def test_answers_are_what_it_says(self, api: Api) -> None:
        _, _, described = await api.get("/api/openapi.json")
        quota = self.schema(described, "/api/quota", "200")
        api.board.note("openai", "openai-1", HEADERS, "openai", now=NOW)
        _, _, body = await api.get("/api/quota")
        assert body["quotas"]
        quota.validate(body)
        assert not quota.is_valid({**body, "quotas": [{**body["quotas"][0], "remaining": -1}]})
        assert not quota.is_valid({**body, "quotas": [{**body["quotas"][0], "limit": 9.22e18}]})

    async def test_budgets_are_what_it_says(self, api: Api) -> None:
        _, _, described = await api.get("/api/openapi.json")
        budgets = self.schema(described, "/api/budgets", "200")
        api.budgets.statuses = [status("search", team="search")]
        _, _, body = await api.get("/api/budgets")
        budgets.validate(body)
        assert not budgets.is_valid({**body, "budgets": [{**body["budgets"][0], "limit_usd": 10.0}]})

    async def test_errors_are_what_it_says(self, api: Api) -> None:
        _, _, described = await api.get("/api/openapi.json")
        _, _, refused = await api.get("/api/quota", key=None)
        error = self.schema(described, "/api/quota", "default")
        error.validate(refused)
        assert not error.is_valid({"error": "no"})

    async def test_instants_are_marked_as_such(self, api: Api) -> None:
        _, _, described = await api.get("/api/openapi.json")
        assert described["components"]["schemas"]["QuotaReport"]["properties"]["at"]["format"] == "date-time"
