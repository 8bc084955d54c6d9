"""Shared by the trials that kill processes: a load that continues through a kill, and the checks after it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

import httpx2

CLIENTS = 16
PACE = (
    "--latency-ms",
    "uniform:0-30",
    "--chunks-per-second",
    "lognormal:500,0.5",
    "--completion-tokens",
    "uniform:5-60",
)
CHATS = ("json", "stream")
MIXED = ("json", "stream", "embeddings", "tool")
UNPRICED_MODEL = "llama-of-our-own"
MODELS = ("gpt-4.1", "deepseek-v3.2", UNPRICED_MODEL)
EMBEDDING_MODEL = "text-embedding-3-small"
MESSAGES = [{"role": "user", "content": "Count."}]
MCP_HEADERS = {
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2026-07-28",
    "mcp-method": "tools/call",
    "mcp-name": "chat",
}
MCP_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
NANO = 10**9


class Answered(NamedTuple):
    """A call whose response a client received completely."""

    kind: str
    call_id: str
    prompt_tokens: int
    completion_tokens: int


class Load:
    """Clients that make one call after the other, whatever the responses, until they are stopped.

    Each call is of one of `kinds`, each client has one of `secrets`.
    """

    def __init__(
        self, address: Callable[[], str], random: Random, kinds: Sequence[str] = CHATS, secrets: Sequence[str] = ("",)
    ) -> None:
        self._address = address
        self._random = random
        self._kinds = kinds
        self._secrets = secrets
        self._changed = asyncio.Condition()
        self.stopping = False
        self.answered: list[Answered] = []
        self.refused: Counter[int] = Counter()
        """Other statuses than 200."""
        self.cut = 0

    async def run(self) -> None:
        async with httpx2.AsyncClient(timeout=120, verify=False) as http:
            await asyncio.gather(*(self._client(http, number) for number in range(CLIENTS)))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(holds), 90)

    async def _client(self, http: httpx2.AsyncClient, number: int) -> None:
        secret = self._secrets[number % len(self._secrets)]
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        while not self.stopping:
            try:
                await self._call(http, self._random.choice(self._kinds), headers)
            except httpx2.HTTPError:
                self.cut += 1
                if self.stopping:
                    return
                await asyncio.sleep(0.05)  # otherwise thousands of attempts while the service is down
            async with self._changed:
                self._changed.notify_all()

    async def _call(self, http: httpx2.AsyncClient, kind: str, headers: Mapping[str, str]) -> None:
        path, body = _request(kind, self._random.choice(MODELS))
        headers = {**headers, **MCP_HEADERS} if kind == "tool" else headers
        response = await http.post(f"{self._address()}{path}", json=body, headers=headers)
        if response.status_code != 200:
            self.refused[response.status_code] += 1
            await asyncio.sleep(0.05)
            return
        self.answered.append(_answered(kind, response.content, response.headers))


def _request(kind: str, model: str) -> tuple[str, dict[str, Any]]:
    chat = {"model": model, "messages": MESSAGES}
    if kind == "tool":
        params = {"name": "chat", "arguments": chat, "_meta": MCP_META}
        return "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    if kind == "embeddings":
        return "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": ["Count.", "These."]}
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if kind == "stream" else {}
    return "/v1/chat/completions", chat | streamed


def _answered(kind: str, content: bytes, headers: Mapping[str, str]) -> Answered:
    """Parse a response. Raises RemoteProtocolError for a stream without its end."""
    if kind == "tool":
        result = _tool_result(content, headers)
        usage = result["usage"]
        return Answered(kind, result["call_id"], usage["prompt_tokens"], usage["completion_tokens"])
    if kind == "stream":
        if not content.endswith(b"data: [DONE]\n\n"):
            raise httpx2.RemoteProtocolError("a stream without its end")
        content = content.split(b"\n\n")[-3][6:]
    usage = json.loads(content)["usage"]
    return Answered(kind, headers["x-mcpmeter-call-id"], usage["prompt_tokens"], usage.get("completion_tokens", 0))


def _tool_result(content: bytes, headers: Mapping[str, str]) -> Mapping[str, Any]:
    if headers["content-type"].startswith("text/event-stream"):
        data = [line[5:] for line in content.splitlines() if line.startswith(b"data:") and line[5:].strip()]
        if not data or b'"result"' not in data[-1]:
            raise httpx2.RemoteProtocolError("a stream without its result")
        content = data[-1]
    result = json.loads(content)["result"]
    assert not result.get("isError"), result
    return result["structuredContent"]


def is_kept(call: Answered, row: Mapping[str, Any] | None) -> bool:
    """Whether the ledger has an answered call with the client's figures."""
    return row is not None and (
        row["state"], row["outcome"], row["token_source"], row["prompt_tokens"], row["completion_tokens"]
    ) == ("settled", "ok", "reported", call.prompt_tokens, call.completion_tokens)  # fmt: skip


def missing_of(answered: Sequence[Answered], rows: Sequence[Mapping[str, Any]]) -> int:
    """The number of answered calls without a row, or with other tokens in it."""
    row_of = {row["id"]: row for row in rows}
    return sum(not is_kept(call, row_of.get(call.call_id)) for call in answered)


def duplicates_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """The number of duplicate rows, by their id or by the provider's request id."""
    requests = Counter(row["upstream_request_id"] for row in rows if row["upstream_request_id"])
    return len(rows) - len({row["id"] for row in rows}) + sum(count - 1 for count in requests.values())


def changed_by_restart(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> int:
    """The number of settled rows that differ, plus rows that exist only before or only after."""
    row_of = {row["id"]: row for row in after}
    settled = [row for row in before if row["state"] == "settled"]
    return sum(row_of.get(row["id"]) != row for row in settled) + len(row_of.keys() ^ {row["id"] for row in before})


def spent_of(rows: Sequence[Mapping[str, Any]], budget: Mapping[str, Any]) -> int:
    """What a budget of `/api/budgets` spent in its current period by the ledger's rows, in nano-dollars."""
    start_ns, end_ns = (
        int(datetime.fromisoformat(budget[name]).timestamp()) * NANO for name in ("period_start", "resets_at")
    )
    scope = {name: budget[name] for name in ("team", "project", "key_id", "model") if budget[name]}
    return sum(
        row["cost_nanousd"] + row["fallback_cost_nanousd"]
        for row in rows
        if start_ns <= row["started_at_ns"] < end_ns and all(row[name] == value for name, value in scope.items())
    )


def nanousd(usd: str | float) -> int:
    """Nano-dollars from the dollars of the API or of a gauge, whose float still holds each nano-dollar."""
    return int(round(Decimal(usd), 9) * NANO)
