"""What our own listener does beneath ASGI: one write an answer, idle connections, heads that hold no other."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from mcpmeter.http.exchange import DIRECT_RESPONSE
from mcpmeter.http.server.cycle import RequestCycle

OK = (b"content-type", b"application/json")


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def cycle_on(transport: Transport, *, method: str = "POST", keep_alive: bool = True) -> RequestCycle:
    return RequestCycle(
        {"type": "http", "method": method},  # type: ignore[typeddict-item]
        transport,  # type: ignore[arg-type]
        FlowControl(transport),  # type: ignore[arg-type]
        default_headers=[(b"date", b"today")],
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )


async def test_an_answer_is_one_write() -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    cycle.start(200, [OK, (b"content-length", b"2")])
    assert transport.writes == []
    cycle.end(b"{}")
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
    assert transport.writes == [head + b"{}"]
    assert cycle.response_complete


@pytest.mark.parametrize(("method", "body_out"), [("POST", b"{}"), ("HEAD", b"")])
async def test_what_is_there_in_full_is_one_write_with_its_length(method: str, body_out: bytes) -> None:
    transport = Transport()
    cycle = cycle_on(transport, method=method)
    cycle.respond(200, [OK], b"{}")
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
    assert transport.writes == [head + body_out]
    assert cycle.response_complete
    assert not transport.is_closed


async def test_what_is_there_in_full_says_that_its_connection_ends() -> None:
    transport = Transport()
    cycle_on(transport, keep_alive=False).respond(200, [OK], b"{}")
    assert b"\r\nconnection: close\r\n\r\n{}" in transport.writes[0]
    assert transport.is_closed


async def test_what_is_there_in_full_is_not_written_to_who_has_gone() -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    cycle.tell_gone()
    cycle.respond(200, [OK], b"{}")
    assert transport.writes == []
    assert not cycle.response_complete


async def test_a_body_in_parts_is_given_whole_and_once() -> None:
    cycle = cycle_on(Transport())
    cycle.has_come(b"a")
    assert cycle.whole_body() is None
    for part in (b"b", b"", b"c"):
        cycle.has_come(part)
    cycle.more_body = False
    cycle.has_come()
    assert cycle.whole_body() == b"abc"
    waiting = asyncio.ensure_future(cycle.receive())
    await asyncio.sleep(0)
    assert not waiting.done()  # there is no more to tell
    cycle.tell_gone()
    assert (await waiting)["type"] == "http.disconnect"


async def test_a_body_in_parts_is_told_by_messages_as_it_comes() -> None:
    cycle = cycle_on(Transport())
    cycle.has_come(b"a")
    assert await cycle.receive() == {"type": "http.request", "body": b"a", "more_body": True}
    waiting = asyncio.ensure_future(cycle.receive())
    await asyncio.sleep(0)
    assert not waiting.done()
    cycle.has_come(b"b")
    cycle.more_body = False
    assert await waiting == {"type": "http.request", "body": b"b", "more_body": False}


async def answers(scope: Any, receive: Any, send: Any) -> None:
    scope["extensions"][DIRECT_RESPONSE].respond(200, [OK], b"{}")


async def starts(scope: Any, receive: Any, send: Any) -> None:
    scope["extensions"][DIRECT_RESPONSE].start(200, [OK])


async def returns(scope: Any, receive: Any, send: Any) -> None:
    pass


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError


@pytest.mark.parametrize(
    ("app", "status", "is_closed"),
    [(answers, b"200", False), (starts, b"", True), (returns, b"500", True), (fails, b"500", True)],
)
async def test_however_an_application_ends_its_client_is_not_left_waiting_and_its_task_is_forgotten(
    app: Any, status: bytes, is_closed: bool
) -> None:
    transport, tasks = Transport(), set[asyncio.Task[None]]()
    cycle = cycle_on(transport)
    cycle.scope["extensions"] = {DIRECT_RESPONSE: cycle}  # type: ignore[dict-item]
    cycle.run(app, asyncio.get_running_loop(), tasks)
    await asyncio.wait(list(tasks))
    assert b"".join(transport.writes)[9:12] == status
    assert transport.is_closed is is_closed
    assert not tasks


async def test_a_request_that_is_over_leaves_nothing_to_the_collector() -> None:
    cycle, tasks = cycle_on(Transport()), set[asyncio.Task[None]]()
    cycle.scope["extensions"] = {DIRECT_RESPONSE: cycle}  # type: ignore[dict-item]
    gone = weakref.ref(cycle)
    cycle.run(answers, asyncio.get_running_loop(), tasks)
    gc.disable()
    try:
        await asyncio.wait(list(tasks))
        del cycle
        assert gone() is None
    finally:
        gc.enable()


async def test_a_stream_is_framed_and_its_head_goes_with_its_first_part() -> None:
    transport = Transport()
    cycle = cycle_on(transport, keep_alive=False)
    cycle.start(200, [])
    cycle.write(b"")  # nothing to frame, but the head must not wait any longer
    cycle.write(b"0123456789abcdef")
    cycle.end(b"!")
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    assert transport.writes == [head, b"10\r\n0123456789abcdef\r\n", b"1\r\n!\r\n0\r\n\r\n"]
    assert transport.is_closed


async def test_an_answer_may_close_its_connection() -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    cycle.start(408, [(b"connection", b"close"), (b"content-length", b"0")])
    cycle.end(b"")
    assert b"".join(transport.writes).count(b"connection: close") == 1
    assert transport.is_closed


async def test_an_answer_to_head_has_no_body() -> None:
    transport = Transport()
    cycle = cycle_on(transport, method="HEAD")
    cycle.start(200, [(b"content-length", b"2")])
    cycle.end(b"{}")
    assert b"".join(transport.writes).endswith(b"content-length: 2\r\n\r\n")


@pytest.mark.parametrize("told", [b"1", b"3"])
async def test_a_body_that_is_not_as_long_as_its_head_says_is_a_fault(told: bytes) -> None:
    cycle = cycle_on(Transport())
    cycle.start(200, [(b"content-length", told)])
    with pytest.raises(RuntimeError, match="than its content-length"):
        cycle.end(b"{}")


@pytest.mark.parametrize("value", [b"a\r\nx-injected: 1", b"a\nb", b"a\rb", b"a\0b"])
async def test_no_header_can_hold_another(value: bytes) -> None:
    transport = Transport()
    with pytest.raises(RuntimeError, match="line break"):
        cycle_on(transport).start(200, [(b"x", value)])
    with pytest.raises(RuntimeError, match="line break"):
        cycle_on(transport).respond(200, [(b"x", value)], b"{}")
    assert transport.writes == []


async def test_who_has_gone_is_told_of_at_once_and_written_nothing() -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    told: list[str] = []
    cycle.watch(lambda: told.append("gone"))
    cycle.start(200, [])
    cycle.disconnected = True
    cycle.tell_gone()
    cycle.write(b"x")
    cycle.end(b"y")
    assert (told, transport.writes) == (["gone"], [])
    cycle.watch(lambda: told.append("gone before"))
    assert told == ["gone", "gone before"]


async def test_an_idle_connection_is_closed_and_one_that_waits_for_its_answer_is_not(
    start_relay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["mcpmeter.service.run"], "KEEP_ALIVE_SECONDS", 0.1)
    relay = await start_relay()
    reader, writer = await asyncio.open_connection(*relay.address)
    writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert b'"healthy"' in await asyncio.wait_for(reader.read(), 5)  # read to the end: it was closed
    writer.close()
    body = b'{"model":"gpt-4.1","messages":[{"role":"user","content":"Hi"}],"metadata":{"simulate":"latency_ms=400"}}'
    reader, writer = await asyncio.open_connection(*relay.address)
    writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"}"), 5)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    assert b"HTTP/1.1 200" in await asyncio.wait_for(reader.read(), 5)
    writer.close()
