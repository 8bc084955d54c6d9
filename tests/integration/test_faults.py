"""The fault table: faults of a provider or its connection in every dialect, whole and streamed. Each row has what the
client sees, what the ledger holds and which counters move; `fault_table.py` checks the service against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_asyncio
from tests.integration.fault_table import (
    BROKE,
    CALLER,
    LIMITED,
    REFUSE,
    TIMED_OUT,
    UNREACHABLE,
    Bench,
    Row,
    bench,
    counters,
    increase,
    row_of,
    table,
)
from tests.integration.speakers import (
    CHAT,
    CHAT_STREAM,
    COUNTS,
    EVERY,
    GENERATE_ARRAY,
    GENERATE_STREAM,
    GUIDE,
    MESSAGES_STREAM,
    RESPONSES_STREAM,
    STREAMS,
    WHOLE,
    Speaker,
)

from mcpmeter.simulator import WireFault

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEGABYTE = 1024 * 1024
SHORT = {"first_byte_seconds": 0.2, "idle_seconds": 0.2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at(start_module_relay) -> Any:
    async with bench(start_module_relay, ROWS, relay={"max_answer_bytes": MEGABYTE}) as loaded:
        yield loaded


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(start_module_relay) -> Any:
    """With a relay whose timeouts are short."""
    async with bench(start_module_relay, STALLS, timeouts=SHORT) as loaded:
        yield loaded


# Statuses -------------------------------------------------------------------------------------------------------------


def refused(speaker: Speaker, upstream: int, error: str, counted: tuple[str, str], attempt: str, **more: Any) -> Row:
    effects = {"status": upstream, "upstream_status": upstream, "outcome": "error", "tokens": "", **more}
    return Row(speaker=speaker, fault=f"status={upstream}", error=error, counted=counted, attempt=attempt, **effects)


OURS: dict[str, Any] = {"sees": "ours", "status": 502}


def statuses(speaker: Speaker) -> Iterator[Row]:
    """Errors about the request or the provider pass unchanged; errors about our account do not."""
    yield refused(speaker, 400, "invalid_request", CALLER, "caller_error")
    yield refused(speaker, 401, "upstream_refused_account", BROKE, "refused", **OURS)
    yield refused(speaker, 503, "upstream_fault", BROKE, "server_error", **(OURS if speaker is GUIDE else {}))
    yield refused(speaker, 301, "upstream_answered_garbage", BROKE, "garbage", **OURS)
    yield Row(
        speaker=speaker, fault="status=429,retry_after=7", status=429, upstream_status=429, outcome="error", tokens="",
        error="upstream_rate_limited", counted=LIMITED, attempt="rate_limited",
    )  # fmt: skip


def further_statuses(speaker: Speaker) -> Iterator[Row]:
    """Faults whose effects do not depend on the dialect."""
    ours = OURS
    for status in (404, 422):
        yield refused(speaker, status, "invalid_request", CALLER, "caller_error")
    yield refused(speaker, 402, "upstream_refused_account", BROKE, "refused", **ours)
    yield refused(speaker, 403, "upstream_refused_account", BROKE, "forbidden", **ours)
    for status in (500, 502, 529):
        yield refused(speaker, status, "upstream_fault", BROKE, "server_error", **(ours if speaker is GUIDE else {}))
    mapped = {"sees": "ours"} if speaker is GUIDE else {}
    yield refused(speaker, 504, "upstream_timed_out", TIMED_OUT, "server_error", **mapped)
    yield refused(speaker, 304, "upstream_answered_garbage", BROKE, "garbage", **ours)


# Usage ----------------------------------------------------------------------------------------------------------------


def usages(speaker: Speaker) -> Iterator[Row]:
    """An explicit zero is reported usage; invalid usage is replaced by an estimate."""
    for fault in ("", "usage=zero", "usage=twice", "encoding=gzip"):
        yield Row(speaker=speaker, fault=fault)
    yield Row(speaker=speaker, fault="usage=missing", tokens="estimated", missing="no_usage")
    for invalid in ("negative", "string", "nan", "overflow"):
        yield Row(speaker=speaker, fault=f"usage={invalid}", tokens="estimated", missing="bad_usage")
    yield Row(speaker=speaker, wire="chunk_bytes=7")


DRIPS = [Row(speaker=speaker, wire="drip_bytes_per_second=100000") for speaker in (CHAT, CHAT_STREAM)]


COUNTED = [Row(speaker=speaker, fault=fault) for speaker in COUNTS for fault in ("", "usage=zero", "encoding=gzip")]
CHOICES = Row(speaker=CHAT_STREAM, fault="usage=with_choices")


# Bodies ---------------------------------------------------------------------------------------------------------------


def broken(speaker: Speaker, error: str = "upstream_answered_garbage", **more: Any) -> Row:
    """No valid response: the provider may have worked for it, so the prompt is charged, as `partial`.

    Counting tokens is always free.
    """
    effects = {"status": 502, "outcome": "error", "counted": BROKE, "sees": "ours"}
    usage = {"tokens": "", "missing": ""} if speaker in COUNTS else {"tokens": "partial", "missing": "upstream_broke"}
    return Row(speaker=speaker, error=error, **{**effects, **usage, **more})


def cut(speaker: Speaker, error: str = "upstream_broke", **more: Any) -> Row:
    """A stream that ends too early: what was delivered is charged."""
    effects = {"outcome": "partial", "counted": BROKE, "sees": "cut", "tokens": "partial", "missing": "upstream_broke"}
    return Row(speaker=speaker, error=error, **{**effects, **more})


def errors_inside(speaker: Speaker) -> Row:
    """The provider's own error under a success status passes unchanged."""
    delivered = {"tokens": "partial", "missing": "upstream_broke"} if speaker.streams else {"tokens": ""}
    return Row(speaker=speaker, fault="body=error", outcome="error", error="upstream_fault", counted=BROKE, **delivered)


def bodies(speaker: Speaker) -> Iterator[Row]:
    for body in ("html", "empty"):
        yield broken(speaker, fault=f"body={body}")
    if speaker.streams:
        for body in ("malformed_json", "malformed_sse"):
            yield Row(speaker=speaker, fault=f"body={body}")
    else:
        yield broken(speaker, fault="body=malformed_json")
        yield broken(speaker, "upstream_broke", fault="content_length=long")
    if speaker is not GENERATE_ARRAY:  # its error would not end the array
        yield errors_inside(speaker)


ENDS = [
    Row(speaker=CHAT_STREAM, fault="done=missing"),
    Row(speaker=MESSAGES_STREAM, fault="done=missing"),
    # The last event carries the usage; without it a complete stream looks like half of one.
    cut(RESPONSES_STREAM, fault="done=missing"),
    cut(GENERATE_STREAM, fault="done=missing"),
    broken(GENERATE_ARRAY, fault="done=missing"),
    *(Row(speaker=speaker, wire=f"newlines={kind}") for speaker in STREAMS for kind in ("crlf", "cr", "mixed")),
]
BOMB, LINE = "gzip_bomb_mb=64", "line_mb=100"
TOO_LARGE = "upstream_answer_too_large"
SIZES = [
    broken(CHAT, TOO_LARGE, fault="huge_mb=2"),
    cut(CHAT_STREAM, TOO_LARGE, fault="huge_mb=2"),
    *(broken(speaker, TOO_LARGE, wire=wire) for speaker in (CHAT, GENERATE_ARRAY) for wire in (BOMB, LINE)),
    *(cut(speaker, TOO_LARGE, wire=wire, delivered=False) for speaker in STREAMS for wire in (BOMB, LINE)),
]


# Connections ----------------------------------------------------------------------------------------------------------


def connections(speaker: Speaker) -> Iterator[Row]:
    """Faults in every dialect."""
    nothing: dict[str, Any] = {"upstream_status": 0, "attempt": "broken"}
    yield broken(speaker, "upstream_broke", wire="reset=headers", **nothing)
    for stage in ("body", "chunk"):
        yield broken_early(speaker, "upstream_broke", wire=f"reset={stage},after_bytes=9")
        if speaker.streams:
            yield cut(speaker, wire=f"reset={stage},after_bytes=1500")


def further_connections(speaker: Speaker) -> Iterator[Row]:
    """Faults whose effects do not depend on the dialect."""
    nothing: dict[str, Any] = {"upstream_status": 0, "attempt": "broken"}
    yield Row(
        speaker=speaker, wire=REFUSE, sees="ours", status=502, outcome="error", error="upstream_unreachable", tokens="",
        counted=UNREACHABLE, attempt="unreachable", upstream_status=0,
    )  # fmt: skip
    for how in ("reset=accept", "reset=head", "close=accept", "close=headers", "close=head"):
        yield broken(speaker, "upstream_broke", wire=how, **nothing)
    for stage in ("body", "chunk"):
        yield broken_early(speaker, "upstream_broke", wire=f"close={stage},after_bytes=9")


def broken_early(speaker: Speaker, error: str, **more: Any) -> Row:
    """Only a stream's headers could pass before the fault; the bytes of an unfinished chunk pass too."""
    if speaker.streams:
        effects = {name: value for name, value in more.items() if name != "status"}
        return cut(speaker, error, delivered="chunk" in more["wire"], **effects)
    return broken(speaker, error, **more)


def stalls(speaker: Speaker) -> Iterator[Row]:
    silent: dict[str, Any] = {"counted": TIMED_OUT, "status": 504}
    nothing: dict[str, Any] = {**silent, "upstream_status": 0, "attempt": "timeout"}
    yield broken(speaker, "upstream_timed_out", wire="stall=headers", **nothing)
    yield broken_early(speaker, "upstream_timed_out", wire="stall=body,after_bytes=9", **silent)
    if speaker.streams:
        yield cut(speaker, "upstream_timed_out", wire="stall=body,after_bytes=1500", counted=TIMED_OUT)
    if speaker in (CHAT, CHAT_STREAM):
        yield broken(speaker, "upstream_timed_out", wire="stall=accept", **nothing)
        yield broken(speaker, "upstream_timed_out", wire="stall=head", **nothing)
        yield broken_early(speaker, "upstream_timed_out", wire="stall=chunk,after_bytes=9", **silent)


ROWS = [
    *(row for speaker in (*EVERY, GUIDE) for row in statuses(speaker)),
    *(row for speaker in (*WHOLE, *STREAMS) for row in usages(speaker)),
    *(row for speaker in (CHAT, GUIDE) for row in further_statuses(speaker)),
    *DRIPS,
    *COUNTED,
    CHOICES,
    *(row for speaker in EVERY for row in bodies(speaker)),
    *ENDS,
    *SIZES,
    *(row for speaker in EVERY for row in connections(speaker)),
    *(row for speaker in (CHAT, CHAT_STREAM) for row in further_connections(speaker)),
]


STALLS = [row for speaker in EVERY for row in stalls(speaker)]


@table(ROWS)
async def test_a_fault_is_reported_settled_and_counted(at: Bench, row):
    await at.check(row)


@table(STALLS)
async def test_a_stall_times_out_and_closes_the_connection(impatient: Bench, row):
    await impatient.check(row)
    await impatient.simulator.billing_log.wait_until(lambda log: log.open_calls == 0)


@pytest.mark.parametrize("fault", ["status=204", "content_length=short"])
async def test_a_body_shorter_or_longer_than_declared_is_invalid(start_module_relay, fault):
    """Not in the table: surplus bytes may arrive with the headers, and then there is no response at all."""
    relay = await start_module_relay()
    before = counters(relay)["mcp_errors_total"]
    reply = await relay.chat(fault)
    assert (reply.status, reply.error["code"]) == (502, "upstream_answered_garbage")
    stored = row_of(relay, reply.headers["x-mcpmeter-call-id"])
    assert (stored.outcome, stored.error_id) == ("error", "upstream_answered_garbage")
    assert increase(before, counters(relay)["mcp_errors_total"]) == {BROKE: 1}


async def test_a_line_of_100_mb_passes_if_the_limit_allows_it(start_module_relay):
    """Longer than what is held back for reading; the usage is in an event of its own."""
    async with bench(start_module_relay, (), relay={"max_answer_bytes": 128 * MEGABYTE}) as loaded:
        loaded.proxy.fault = WireFault(line_mb=100)
        url, body = loaded.relay.url + CHAT_STREAM.path, CHAT_STREAM.body("", "gpt-4.1")
        async with loaded.relay.http.stream("POST", url, json=body) as got:
            size, end = 0, b""
            async for piece in got.aiter_raw():
                size, end = size + len(piece), (end + piece)[-20:]
        await loaded.relay.until_idle()
        stored = row_of(loaded.relay, got.headers["x-mcpmeter-call-id"])
    assert size > 100 * MEGABYTE
    assert end.endswith(b"data: [DONE]\n\n")
    assert (stored.outcome, stored.token_source) == ("ok", "reported")


async def test_no_label_overflows(at: Bench):
    await at.relay.scrape_openmetrics()
    scrape = await at.relay.scrape()
    assert scrape.of("mcp_label_overflow_total") == 0
