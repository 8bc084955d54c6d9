"""Stopping and reloading while streams run, as an init system and a person at a terminal do it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest

PACE = ("--chunks-per-second", 40, "--completion-tokens", 80)
"""Two seconds a stream."""
STALLED = {"simulate": "stall=body,after_tokens=5"}
LONG_DRAIN_SECONDS = 600
STREAMS = 6


class Stream:
    """A streamed call that has begun, read to its end in the background."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.call_id = answer.headers["x-mcpmeter-call-id"]
        self._answer = answer
        self._content = b""
        self._reading = asyncio.create_task(self._read())
        self.begun = asyncio.Event()

    async def _read(self) -> bytes:
        async for data in self._answer.aiter_raw():
            self._content += data
            self.begun.set()
        return self._content

    async def whole(self) -> bytes:
        """What came until the stream's end."""
        return await asyncio.wait_for(self._reading, 120)


@asynccontextmanager
async def streams(address: str, count: int, **more: Any) -> AsyncIterator[list[Stream]]:
    """So many streams, each with its first bytes here."""
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Go on."}], "stream": True, **more}
    async with httpx2.AsyncClient(timeout=120, verify=False) as http:
        asked = [http.build_request("POST", f"{address}/v1/chat/completions", json=body) for _ in range(count)]
        answers = await asyncio.gather(*(http.send(request, stream=True) for request in asked))
        begun = [Stream(answer) for answer in answers]
        await asyncio.gather(*(stream.begun.wait() for stream in begun))
        yield begun


@pytest.fixture
def serving(stand):
    """The stand with a provider that takes two seconds for a stream."""

    def begin(**options: Any):
        stand.start_simulator(*PACE)
        stand.configure(**options)
        stand.start_relay()
        return stand

    return begin


def ended_cleanly(finished: Any) -> None:
    assert finished.code == 0, finished
    assert finished.faults == ""


async def end(relay: Any, number: signal.Signals | None = None) -> Any:
    return await asyncio.to_thread(relay.end, number)


class TestTermination:
    async def test_streams_finish_while_nothing_new_is_taken(self, serving):
        stand = serving()
        async with streams(stand.address, STREAMS) as running, httpx2.AsyncClient(verify=False) as http:
            stand.relay.send(signal.SIGTERM)
            await until_draining(http, stand.address)
            ask = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Too late?"}]}
            answer = await http.post(f"{stand.address}/v1/chat/completions", json=ask)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            contents = await asyncio.gather(*(stream.whole() for stream in running))
        ended_cleanly(await end(stand.relay))
        assert all(content.endswith(b"data: [DONE]\n\n") for content in contents)
        assert {(row["state"], row["outcome"], row["token_source"]) for row in stand.rows()} == {
            ("settled", "ok", "reported")
        }

    async def test_past_the_deadline_streams_are_cut_told_and_settled_as_partial(self, serving):
        stand = serving(drain_seconds=0.5)
        async with streams(stand.address, STREAMS, metadata=STALLED) as running:
            stand.relay.send(signal.SIGTERM)
            contents = await asyncio.gather(*(stream.whole() for stream in running))
        ended_cleanly(await end(stand.relay))
        for content in contents:
            last = json.loads(content.rstrip().rpartition(b"data: ")[2])
            assert last["error"]["code"] == "draining"
        rows = stand.rows()
        assert {(row["state"], row["outcome"], row["token_source"]) for row in rows} == {
            ("settled", "partial", "partial")
        }
        assert {row["id"] for row in rows} == {stream.call_id for stream in running}
        assert stand.billing_log()["totals"]["cancelled"] == STREAMS

    async def test_with_nothing_to_do_it_ends_at_once(self, serving):
        stand = serving(drain_seconds=LONG_DRAIN_SECONDS)
        await answers(stand.address, "any")
        ended_cleanly(await end(stand.relay, signal.SIGTERM))


async def until_draining(http: httpx2.AsyncClient, address: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (await http.get(f"{address}/-/ready")).status_code == 503:
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never said that it is not ready")


class TestControlC:
    async def test_the_first_drains_and_the_second_does_not_wait(self, serving):
        stand = serving(drain_seconds=LONG_DRAIN_SECONDS)
        async with (
            streams(stand.address, STREAMS, metadata=STALLED) as running,
            httpx2.AsyncClient(verify=False) as http,
        ):
            stand.relay.send(signal.SIGINT)
            await until_draining(http, stand.address)
            assert stand.billing_log()["open_calls"] == STREAMS
            stand.relay.send(signal.SIGINT)
            contents = await asyncio.gather(*(stream.whole() for stream in running))
        ended_cleanly(await end(stand.relay))
        assert all(b"draining" in content for content in contents)
        assert {row["outcome"] for row in stand.rows()} == {"partial"}


class TestReload:
    @pytest.mark.parametrize("how", ["SIGHUP", "POST"])
    async def test_a_stream_goes_on_while_a_new_key_begins_to_count(self, serving, team_keys, how):
        stand = serving()
        async with streams(stand.address, STREAMS) as running:
            stand.configure(keys=("search",))
            await reload(stand, how)
            await answers(stand.address, team_keys["search"])
            with pytest.raises(openai.AuthenticationError):
                await answers(stand.address, team_keys["support"])
            assert stand.billing_log()["open_calls"] == STREAMS
            contents = await asyncio.gather(*(stream.whole() for stream in running))
        assert all(content.endswith(b"data: [DONE]\n\n") for content in contents)
        assert stand.total("mcpmeter_config_last_reload_successful") == 1
        assert stand.total("mcp_tokens_total", team="search") > 0
        finished = await end(stand.relay, signal.SIGTERM)
        assert finished.code == 0
        assert finished.stderr.splitlines() == [f"mcpmeter: configuration reloaded from {stand.config}"]
        assert {row["team"] for row in stand.rows()} == {"default", "search"}

    async def test_a_configuration_that_cannot_be_run_changes_nothing_and_is_told(self, serving):
        stand = serving()
        async with streams(stand.address, STREAMS) as running:
            stand.config.write_text("server: {prot: 1}\n")
            stand.relay.send(signal.SIGHUP)
            line = await asyncio.to_thread(stand.relay.says, r"not reloaded.*\n", on="stderr")
            assert "mcpmeter.yaml:1" in line[0]
            assert "'port'" in line[0]
            async with httpx2.AsyncClient(verify=False) as http:
                answer = await http.post(f"{stand.address}/-/reload")
            assert answer.status_code == 400
            assert "mcpmeter.yaml:1" in answer.text
            assert stand.total("mcpmeter_config_last_reload_successful") == 0
            contents = await asyncio.gather(*(stream.whole() for stream in running))
        assert all(content.endswith(b"data: [DONE]\n\n") for content in contents)
        await answers(stand.address, "no key is needed")
        finished = await end(stand.relay, signal.SIGTERM)
        assert finished.code == 0
        assert "Traceback" not in finished.stderr

    async def test_another_provider_takes_over_and_the_old_one_keeps_its_streams(self, serving, start):
        stand = serving()
        first = stand.upstream
        async with streams(stand.address, STREAMS) as running:
            stand.start_simulator(*PACE)
            stand.configure()
            await reload(stand, "SIGHUP")
            await answers(stand.address, "any")
            assert stand.billing_log()["totals"]["calls"] == 1
            contents = await asyncio.gather(*(stream.whole() for stream in running))
        assert stand.upstream != first
        assert all(content.endswith(b"data: [DONE]\n\n") for content in contents)


async def reload(stand: Any, how: str) -> None:
    if how == "SIGHUP":
        stand.relay.send(signal.SIGHUP)
        await asyncio.to_thread(stand.relay.says, "configuration reloaded", on="stderr")
        return
    async with httpx2.AsyncClient(verify=False) as http:
        assert (await http.post(f"{stand.address}/-/reload")).status_code == 200


async def answers(address: str, key: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
        told = await client.chat.completions.create(
            model="gpt-4.1", messages=[{"role": "user", "content": "Well?"}], max_tokens=3
        )
    assert told.usage.completion_tokens == 3
