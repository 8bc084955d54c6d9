"""Every route for every kind of caller: what each may do, and that no team sees another team's figures."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from pydantic import SecretStr
from tests.acting import BY
from tests.http.fakes import Transport, cycle_on
from tests.integration.conftest import MESSAGES, UPSTREAM_KEY, Relay, Reply, StartRelay

from mcpmeter.access.keys import KeyLimits, new_key
from mcpmeter.config import BudgetSettings, ProviderSettings
from mcpmeter.ledger.queries.keys import add_key, revoke_key
from mcpmeter.simulator import Simulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT_BODY = {"model": "gpt-4.1", "messages": MESSAGES}
CLAUDE_BODY = {"model": "claude-sonnet-4.5", "messages": MESSAGES}
TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
MCP_HEADERS = {
    "accept": "application/json, text/event-stream",
    "content-type": "application/json",
    "mcp-protocol-version": "2026-07-28",
    "mcp-method": "tools/list",
}
JSON = {"content-type": "application/json"}
MCP_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
KINDS = ("none", "unknown", "revoked", "caller", "admin")


class Row(NamedTuple):
    """A route's status for: no key, an unknown one, a revoked one, a caller's, an admin's."""

    statuses: tuple[int, int, int, int, int]
    body: Any = b""
    path: str = ""
    """The request's path, if the route is a template."""
    headers: Mapping[str, str] = {}


OPEN = (200, 200, 200, 200, 200)
CALLERS = (401, 401, 401, 200, 200)
ADMINS = (401, 401, 401, 403, 200)
NO_SUCH_KEY = (401, 401, 401, 403, 404)
NO_SUCH_RESPONSE = (401, 401, 401, 404, 404)
NO_SUCH_CALL = (401, 401, 401, 404, 404)
GEMINI = {"contents": [{"parts": [{"text": "Hello"}]}]}

EXPECTED: dict[tuple[str, str], Row] = {
    ("GET", "/"): Row(OPEN),
    ("HEAD", "/"): Row(OPEN),
    ("GET", "/health"): Row(OPEN),
    ("HEAD", "/health"): Row(OPEN),
    ("GET", "/-/healthy"): Row(OPEN),
    ("HEAD", "/-/healthy"): Row(OPEN),
    ("GET", "/-/ready"): Row(OPEN),
    ("HEAD", "/-/ready"): Row(OPEN),
    ("POST", "/-/reload"): Row(ADMINS),
    ("GET", "/metrics"): Row(OPEN),  # metrics.bearer_token closes it
    ("GET", "/v1/models"): Row(CALLERS),
    ("HEAD", "/v1/models"): Row(CALLERS),
    ("GET", "/mcp/models"): Row(CALLERS),
    ("HEAD", "/mcp/models"): Row(CALLERS),
    ("POST", "/mcp/chat"): Row(CALLERS, CHAT_BODY),
    ("POST", "/v1/chat/completions"): Row(CALLERS, CHAT_BODY),
    ("POST", "/v1/responses"): Row(CALLERS, {"model": "gpt-4.1", "input": "Hello"}),
    ("GET", "/v1/responses/{response_id}"): Row(NO_SUCH_RESPONSE, path="/v1/responses/resp_of_no_team"),
    ("DELETE", "/v1/responses/{response_id}"): Row(NO_SUCH_RESPONSE, path="/v1/responses/resp_of_no_team"),
    ("POST", "/v1/responses/{response_id}/cancel"): Row(NO_SUCH_RESPONSE, path="/v1/responses/resp_of_no_team/cancel"),
    ("POST", "/v1/embeddings"): Row(CALLERS, {"model": "text-embedding-3-small", "input": "Hello"}),
    ("POST", "/v1/messages"): Row(CALLERS, {**CLAUDE_BODY, "max_tokens": 9}),
    ("POST", "/v1/messages/count_tokens"): Row(CALLERS, CLAUDE_BODY),
    ("POST", "/mcp"): Row(CALLERS, {**TOOLS, "params": {"_meta": MCP_META}}, headers=MCP_HEADERS),
    # This revision has no use for them; only callers with a key learn that.
    ("GET", "/mcp"): Row((401, 401, 401, 405, 405), headers=MCP_HEADERS),
    ("DELETE", "/mcp"): Row((401, 401, 401, 405, 405), headers=MCP_HEADERS),
    ("GET", "/api/quota"): Row(CALLERS),
    ("GET", "/api/budgets"): Row(CALLERS),
    ("GET", "/api/usage"): Row(CALLERS),
    ("GET", "/api/call"): Row(NO_SUCH_CALL),
    ("GET", "/api/openapi.json"): Row(CALLERS),
    ("GET", "/api/keys"): Row(ADMINS),
    ("POST", "/api/keys"): Row(ADMINS, {"name": "made", "team": "search"}, headers=JSON),
    ("POST", "/api/keys/rotate"): Row(NO_SUCH_KEY, {"id": "key_000000000000"}, headers=JSON),
    ("POST", "/api/keys/revoke"): Row(NO_SUCH_KEY, {"id": "key_000000000000"}, headers=JSON),
}
BEFORE_THE_FIRST_KEY: dict[tuple[str, str], tuple[int, Any]] = {
    ("POST", "/-/reload"): (200, b""),
    ("GET", "/api/keys"): (200, b""),
    ("POST", "/api/keys"): (400, {"name": "made", "team": "search"}),  # the first key must be an admin's
    ("POST", "/api/keys/rotate"): (404, {"id": "key_000000000000"}),
    ("POST", "/api/keys/revoke"): (404, {"id": "key_000000000000"}),
}
"""The admin routes of a service without keys, as a program on its machine sees them."""
HOST = "localhost:8000"
LISTED = "https://chat.example.com"
ORIGINS = {"none": None, "own": f"http://{HOST}", "listed": LISTED, "foreign": "http://localhost:3000"}
PEERS = {"loopback": "127.0.0.1", "elsewhere": "203.0.113.9"}
EVERYWHERE = pytest.mark.parametrize(("peer", "origin"), list(itertools.product(PEERS, ORIGINS)))


class Keyed(NamedTuple):
    """A service with keys, and a secret of each kind."""

    relay: Relay
    secrets: Mapping[str, str | None]
    ids: Mapping[str, str]

    async def ask(
        self, kind: str, method: str, path: str, body: Any = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        secret = self.secrets[kind]
        credentials = {"authorization": f"Bearer {secret}"} if secret else {}
        return await self.relay.ask(body, path, method=method, headers={**(headers or {}), **credentials})

    async def api(self, kind: str, path: str) -> Any:
        reply = await self.ask(kind, "GET", path)
        assert reply.status == 200, reply.body
        return reply.json


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(start_module_relay: StartRelay) -> AsyncIterator[Keyed]:
    budgets = [("of-all", None), ("of-search", "search"), ("of-support", "support")]
    simulator = Simulator(seed=1, key=UPSTREAM_KEY)
    await simulator.start()
    root = simulator.base_url.removesuffix("/v1")
    relay = await start_module_relay(
        simulator=simulator,
        upstream=simulator.base_url,
        server={"allowed_origins": (LISTED,)},
        budgets=tuple(BudgetSettings(name=name, limit_usd="1000", team=team) for name, team in budgets),
        extra_providers=tuple(
            ProviderSettings(name=name, base_url=f"{root}{base}", api_key=SecretStr(UPSTREAM_KEY))
            for name, base in (("openai", "/v1"), ("anthropic", "/v1"), ("gemini", "/v1beta"))
        ),
    )
    secrets: dict[str, str | None] = {"none": None, "unknown": "mk_" + "an-unknown-key-0123456789-abcdefghijklm"}
    ids: dict[str, str] = {}
    for kind, team, role in (
        ("caller", "search", "caller"),
        ("other", "support", "caller"),
        ("admin", "platform", "admin"),
        ("revoked", "platform", "admin"),
    ):
        secrets[kind], key = new_key(kind, team, time.time_ns(), KeyLimits(role=role))  # type: ignore[arg-type]
        add_key(relay.ledger, key, BY)
        ids[kind] = key.id
    revoke_key(relay.ledger, ids["revoked"], time.time_ns(), BY)
    await relay.until(lambda: len(relay.service.pipeline.runtime.keys.keys) == 4)
    found = Keyed(relay, secrets, ids)
    for kind in ("caller", "other"):
        assert (await found.ask(kind, "POST", "/v1/chat/completions", CHAT_BODY)).status == 200
    yield found
    await simulator.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyless(start_module_relay: StartRelay) -> Relay:
    return await start_module_relay(server={"allowed_origins": (LISTED,)})


def routes_of(relay: Relay) -> set[tuple[str, str]]:
    app = relay.service.app
    return {(verb, path) for path, verbs in app._routes.items() for verb in verbs} | {
        (verb, template.label) for template in app._templates for verb in template.verbs
    }


def rows_of(relay: Relay) -> dict[tuple[str, str], Row]:
    """The table, with Gemini's templates filled in."""
    gemini = {
        ("POST", template.label): Row(
            CALLERS,
            _gemini_body(template.label),
            template.label.replace("{model}", "gemini-2.5-flash"),
        )
        for template in relay.service.app._templates
        if "{model}" in template.label
    }
    return {**EXPECTED, **gemini}


def _gemini_body(label: str) -> Any:
    content = GEMINI["contents"][0]
    if label.endswith(":batchEmbedContents"):
        return {"requests": [{"model": "models/gemini-2.5-flash", "content": content}]}
    return {"content": content} if label.endswith(":embedContent") else GEMINI


async def test_the_table_holds_exactly_the_services_routes(keyed: Keyed) -> None:
    assert set(rows_of(keyed.relay)) == routes_of(keyed.relay)


async def status_of(
    relay: Relay, verb: str, path: str, row_body: Any, headers: Mapping[str, str | None], peer: str
) -> tuple[int, bytes]:
    """Status and response of a request from a peer, which the test's own sockets cannot choose."""
    body = row_body if isinstance(row_body, bytes) else json.dumps(row_body).encode()
    sent = {"host": HOST, "content-length": str(len(body)), **headers}
    scope = {
        "method": verb,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "client": (PEERS[peer], 5000),
        "server": ("127.0.0.1", 8000),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items() if value is not None],
    }
    transport = Transport()
    cycle = cycle_on(transport, scope)
    if body:
        cycle.add_body(body)
    cycle.end_body()
    await relay.service.app(cycle.scope, cycle.receive, cycle.send)
    return int(transport.written.split(b" ")[1]), transport.written


def is_page(path: str) -> bool:
    return path == "/" or path.startswith(("/api/", "/-/", "/metrics", "/health"))


@EVERYWHERE
async def test_every_route_follows_the_table(keyed: Keyed, peer: str, origin: str) -> None:
    found, expected = {}, {}
    for ((verb, route), row), kind in itertools.product(rows_of(keyed.relay).items(), KINDS):
        secret = keyed.secrets[kind]
        credentials = {"authorization": f"Bearer {secret}" if secret else None}
        headers = {**row.headers, **credentials, "origin": ORIGINS[origin]}
        status, response = await status_of(keyed.relay, verb, row.path or route, row.body, headers, peer)
        refused = origin == "foreign" or (origin == "own" and not is_page(route))
        found[verb, route, kind] = status
        expected[verb, route, kind] = 403 if refused else row.statuses[KINDS.index(kind)]
        if status in (401, 403):
            assert b"platform" not in response, "a refusal reveals nothing"
        assert b"access-control-" not in response.lower(), "there is no CORS"
    assert found == expected


@EVERYWHERE
async def test_without_keys_only_programs_on_this_machine_administer(keyless: Relay, peer: str, origin: str) -> None:
    for (verb, path), (status, body) in BEFORE_THE_FIRST_KEY.items():
        found, _ = await status_of(keyless, verb, path, body, {**JSON, "origin": ORIGINS[origin]}, peer)
        assert found == (status if (peer, origin) == ("loopback", "none") else 403), (verb, path)
    administered = {route for route, row in EXPECTED.items() if row.statuses in (ADMINS, NO_SUCH_KEY)}
    assert administered == set(BEFORE_THE_FIRST_KEY)


async def test_a_caller_sees_only_its_own_teams_usage(keyed: Keyed) -> None:
    assert {row["team"] for row in (await keyed.api("caller", "/api/usage?by=team"))["rows"]} == {"search"}
    assert {row["team"] for row in (await keyed.api("other", "/api/usage?by=team"))["rows"]} == {"support"}
    assert {"search", "support"} <= {row["team"] for row in (await keyed.api("admin", "/api/usage?by=team"))["rows"]}
    refused = await keyed.ask("caller", "GET", "/api/usage?by=team&team=support")
    assert refused.status == 403
    whole = await keyed.api("caller", "/api/usage?by=")
    mine = await keyed.api("admin", "/api/usage?by=&team=search")
    assert whole["rows"] == mine["rows"], "sums are limited to the team too"


async def test_a_caller_sees_only_its_own_teams_budgets(keyed: Keyed) -> None:
    seen = {
        kind: [budget["name"] for budget in (await keyed.api(kind, "/api/budgets"))["budgets"]]
        for kind in ("caller", "other", "admin")
    }
    assert seen == {
        "caller": ["of-search"],
        "other": ["of-support"],
        "admin": ["of-all", "of-search", "of-support"],
    }


async def test_the_usage_tool_shows_only_the_callers_team(keyed: Keyed) -> None:
    for kind, teams in (("caller", {"search"}), ("other", {"support"})):
        report = await usage_report(keyed, kind)
        assert {row["groups"]["team"] for row in report["rows"]} == teams
    assert {"search", "support"} <= {row["groups"]["team"] for row in (await usage_report(keyed, "admin"))["rows"]}


async def usage_report(keyed: Keyed, kind: str) -> Any:
    params = {"name": "usage_report", "arguments": {"by": ["team"]}, "_meta": MCP_META}
    headers = {**MCP_HEADERS, "mcp-method": "tools/call", "mcp-name": "usage_report"}
    reply = await keyed.ask(kind, "POST", "/mcp", {**TOOLS, "method": "tools/call", "params": params}, headers)
    assert reply.status == 200, reply.body
    text = reply.body.decode()
    line = next((line[5:] for line in text.splitlines() if line.startswith("data:") and "result" in line), text)
    return json.loads(line)["result"]["structuredContent"]


async def test_an_mcp_session_serves_only_the_key_that_opened_it(keyed: Keyed) -> None:
    headers = {"accept": MCP_HEADERS["accept"], "content-type": "application/json"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    opened = await keyed.ask("caller", "POST", "/mcp", {**TOOLS, "method": "initialize", "params": params}, headers)
    headers |= {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
    for kind, refusal in (("other", 404), ("admin", 404), ("none", 401)):
        assert (await keyed.ask(kind, "POST", "/mcp", TOOLS, headers)).status == refusal
        assert (await keyed.ask(kind, "DELETE", "/mcp", b"", headers)).status == refusal
    assert (await keyed.ask("caller", "POST", "/mcp", TOOLS, headers)).status == 200
    assert (await keyed.ask("caller", "DELETE", "/mcp", b"", headers)).status == 200
    assert (await keyed.ask("caller", "POST", "/mcp", TOOLS, headers)).status == 404


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/keys"), ("POST", "/api/keys"), ("POST", "/api/keys/rotate"), ("POST", "/api/keys/revoke")],
)
async def test_a_page_of_another_origin_cannot_change_keys(keyed: Keyed, method: str, path: str, origin: str) -> None:
    before = keyed.relay.service.pipeline.runtime.keys.keys
    body = {"name": "forged", "team": "search", "role": "admin"} if path == "/api/keys" else {"id": keyed.ids["caller"]}
    for headers in ({"origin": origin}, {"host": "evil.example"}):
        reply = await keyed.ask("admin", method, path, b"" if method == "GET" else body, headers)
        assert (reply.status, reply.error["code"]) == (403, "not_allowed")
    assert keyed.relay.service.pipeline.runtime.keys.keys == before
