"""kill -9 under load: what a client has in full is in the ledger, once; what was open is recovered at the restart."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any, NamedTuple

import aiohttp
import pytest

ROUNDS = 3
ROUNDS_IN_FULL = 20
CLIENTS = 16
ANSWERS_BEFORE_THE_KILL = (20, 200)
PACE = (
    "--latency-ms",
    "uniform:0-30",
    "--chunks-per-second",
    "lognormal:500,0.5",
    "--completion-tokens",
    "uniform:5-60",
)


class Answered(NamedTuple):
    """A call whose answer a client has in full."""

    call_id: str
    prompt_tokens: int
    completion_tokens: int


class Load:
    """Clients that call one after the other until the service is gone, and write down what they have in full."""

    def __init__(self, address: str, name: str, random: Random) -> None:
        self._url = f"{address}/v1/chat/completions"
        self._name = name
        self._random = random
        self._news = asyncio.Condition()
        self.answered: list[Answered] = []
        self.cut = 0

    async def run(self) -> None:
        """Until every client has lost the service."""
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._client(session, number) for number in range(CLIENTS)))

    async def until_answered(self, count: int) -> None:
        async with self._news:
            await self._news.wait_for(lambda: len(self.answered) >= count)

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        while True:
            try:
                answered = await self._call(session, f"{self._name}-{number}", stream=self._random.random() < 0.5)
            except aiohttp.ClientError:
                self.cut += 1
                return
            async with self._news:
                self.answered.append(answered)
                self._news.notify_all()

    async def _call(self, session: aiohttp.ClientSession, model: str, *, stream: bool) -> Answered:
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Count."}]}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with session.post(self._url, json=body) as answer:
            content = await answer.read()
            assert answer.status == 200, content
            usage = _usage_of_stream(content) if stream else json.loads(content)["usage"]
            return Answered(answer.headers["x-mcpmeter-call-id"], usage["prompt_tokens"], usage["completion_tokens"])


def _usage_of_stream(content: bytes) -> Mapping[str, int]:
    if not content.endswith(b"data: [DONE]\n\n"):
        raise aiohttp.ClientPayloadError("a stream without its end")
    events = [json.loads(event[6:]) for event in content.split(b"\n\n")[:-2]]
    return events[-1]["usage"]


@pytest.mark.trial
async def test_no_answered_call_is_lost_and_open_ones_are_recovered_after_kill_9_under_load(stand, trials):
    stand.start_simulator("--seed", 5, *PACE)
    stand.configure()
    random = Random(23)
    answered: list[Answered] = []
    cut = left_open = recovered = 0
    seconds_to_restart: list[float] = []
    rounds = ROUNDS_IN_FULL if trials.full else ROUNDS
    stand.start_relay()
    for number in range(rounds):
        load = Load(stand.address, f"round-{number}", random)
        running = asyncio.create_task(load.run())
        await asyncio.wait_for(load.until_answered(random.randrange(*ANSWERS_BEFORE_THE_KILL)), 60)
        killed = stand.relay.end(signal.SIGKILL)
        assert killed.code == -signal.SIGKILL
        await running
        answered += load.answered
        cut += load.cut
        open_now = sum(row["open_calls"] for row in await asyncio.to_thread(stand.report, "outcome"))
        left_open += open_now
        began = time.monotonic()
        await asyncio.to_thread(stand.start_relay)
        seconds_to_restart.append(time.monotonic() - began)
        recovered_now = stand.total("mcp_ledger_recovered_total")
        assert recovered_now == open_now
        recovered += int(recovered_now)

    rows = stand.rows()
    row_of = {row["id"]: row for row in rows}
    missing = [call for call in answered if not is_kept(call, row_of.get(call.call_id))]
    requests = Counter(row["upstream_request_id"] for row in rows if row["upstream_request_id"])
    duplicates = len(rows) - len(row_of) + sum(count - 1 for count in requests.values())
    still_open = sum(row["state"] == "open" for row in rows)
    by_model = Counter(row["model"] for row in rows)
    unwritten = sum(max(0, t["calls"] - by_model[model]) for model, t in stand.books()["by_model"].items())
    trials.record(
        "kill -9 under load",
        f"The service is killed while {CLIENTS} clients call, every second call a stream, and started again on the "
        "same ledger. An answer counts as answered when a client has all of its body, or a stream's [DONE].",
        {
            "kills": rounds,
            "answered calls": len(answered),
            "calls cut off by a kill": cut,
            "answered calls missing from the ledger, or with other tokens": len(missing),
            "duplicates": duplicates,
            "calls of the provider's books without a row": unwritten,
            "rows left open by a kill": left_open,
            "of them recovered at the next start": recovered,
            "rows open at the end": still_open,
            "seconds to start again, most": max(seconds_to_restart),
        },
    )

    assert missing == []
    assert (duplicates, unwritten, still_open) == (0, 0, 0)
    assert recovered == left_open == sum(row["outcome"] == "recovered" for row in rows)
    assert recovered > 0, "no kill met an open call: the load is too small to prove anything"
    assert all(row["token_source"] == "estimated" for row in rows if row["outcome"] == "recovered")
    assert stand.total("mcp_ledger_open_rows") == 0
    finished = stand.relay.end()
    assert finished.code == 0
    assert all("left open were settled as recovered" in line for line in finished.stderr.splitlines())


def is_kept(call: Answered, row: Mapping[str, Any] | None) -> bool:
    return row is not None and (
        row["state"], row["outcome"], row["token_source"], row["prompt_tokens"], row["completion_tokens"]
    ) == ("settled", "ok", "reported", call.prompt_tokens, call.completion_tokens)  # fmt: skip
