"""One request and its response: what an application reads, what it writes, and every way it can end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from tests.http.fakes import Transport, cycle_on

from mcpmeter.errors import ClientDisconnected, HeadersTooLarge
from mcpmeter.http.exchange import DIRECT_RESPONSE

OK = (b"content-type", b"application/json")
HEADERS = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"


# The request ----------------------------------------------------------------------------------------------------------


async def test_a_body_in_parts_is_given_whole_and_once() -> None:
    cycle = cycle_on(Transport(), body_follows=True)
    cycle.add_body(b"a")
    assert cycle.whole_body() is None
    for part in (b"b", b"c"):
        cycle.add_body(part)
    cycle.end_body()
    assert cycle.whole_body() == b"abc"
    waiting = asyncio.ensure_future(cycle.receive())
    await asyncio.sleep(0)
    assert not waiting.done()  # the body was taken
    cycle.disconnect()
    assert (await waiting)["type"] == "http.disconnect"


async def test_a_body_can_be_read_part_by_part() -> None:
    cycle = cycle_on(Transport(), body_follows=True)
    cycle.add_body(b"a")
    assert await cycle.next_body_part() == b"a"
    waiting = asyncio.ensure_future(cycle.next_body_part())
    await asyncio.sleep(0)
    assert not waiting.done()
    cycle.add_body(b"b")
    cycle.end_body()
    assert [await waiting, await cycle.next_body_part()] == [b"b", b""]


async def test_an_asgi_application_gets_the_body_as_messages() -> None:
    cycle = cycle_on(Transport(), body_follows=True)
    cycle.add_body(b"a")
    assert await cycle.receive() == {"type": "http.request", "body": b"a", "more_body": True}
    waiting = asyncio.ensure_future(cycle.receive())
    await asyncio.sleep(0)
    assert not waiting.done()
    cycle.add_body(b"b")
    cycle.end_body()
    assert await waiting == {"type": "http.request", "body": b"b", "more_body": False}


async def test_readers_get_the_error_that_ended_the_request() -> None:
    disconnected, refused = cycle_on(Transport(), body_follows=True), cycle_on(Transport(), body_follows=True)
    disconnected.disconnect()
    refused.refuse(HeadersTooLarge("Too large.", hint="Send less."))
    with pytest.raises(ClientDisconnected):
        await disconnected.next_body_part()
    for read in (refused.next_body_part, refused.receive):
        with pytest.raises(HeadersTooLarge):
            await read()


async def test_100_continue_is_sent_once_when_the_body_is_read() -> None:
    transport = Transport()
    cycle = cycle_on(transport, expects=True, body_follows=True)
    waiting = asyncio.ensure_future(cycle.next_body_part())
    await asyncio.sleep(0)
    cycle.add_body(b"a")
    await waiting
    cycle.end_body()
    await cycle.next_body_part()
    assert transport.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    refusing = Transport()
    cycle_on(refusing, expects=True, body_follows=True).respond(413, [], b"")
    assert b"100 Continue" not in refusing.written


async def test_a_disconnect_is_reported_and_nothing_is_written_after() -> None:
    transport = Transport()
    cycle = cycle_on(transport, body_follows=True)
    reports: list[str] = []
    cycle.watch(lambda: reports.append("during"))
    cycle.start(200, [])
    cycle.disconnect()
    cycle.write(b"x")
    cycle.end(b"y")
    cycle.watch(lambda: reports.append("before"))
    assert (reports, transport.writes) == (["during", "before"], [])
    assert not cycle.response_complete


# The response ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "body"), [("POST", b"{}"), ("HEAD", b"")])
async def test_a_complete_response_is_one_write_with_its_length(method: str, body: bytes) -> None:
    transport = Transport()
    cycle = cycle_on(transport, {"method": method})
    cycle.respond(200, [OK], b"{}")
    assert transport.writes == [HEADERS + body]
    assert cycle.response_complete


async def test_headers_wait_for_the_first_part_of_the_body() -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    cycle.start(200, [OK, (b"content-length", b"2")])
    assert transport.writes == []
    cycle.end(b"{}")
    assert transport.writes == [HEADERS + b"{}"]


async def test_a_stream_is_sent_in_chunks() -> None:
    transport = Transport()
    cycle = cycle_on(transport, keep_alive=False)
    cycle.start(200, [(b"transfer-encoding", b"chunked")])
    cycle.write(b"")  # an empty chunk would end the body, but the headers go out
    cycle.write(b"0123456789abcdef")
    cycle.end(b"!")
    headers = b"HTTP/1.1 200 OK\r\ndate: today\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    assert transport.writes == [headers, b"10\r\n0123456789abcdef\r\n", b"1\r\n!\r\n0\r\n\r\n"]


async def test_a_stream_to_http_1_0_ends_with_its_connection() -> None:
    transport = Transport()
    cycle = cycle_on(transport, {"http_version": "1.0"}, keep_alive=False)
    cycle.start(200, [])
    cycle.write(b"a")
    cycle.end(b"b")
    assert transport.written == b"HTTP/1.1 200 OK\r\ndate: today\r\nconnection: close\r\n\r\nab"


async def test_an_asgi_applications_headers_go_out_at_once() -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    await cycle.send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"2")]})
    assert transport.writes == [b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\n\r\n"]
    await cycle.send({"type": "http.response.body", "body": b"{", "more_body": True})
    await cycle.send({"type": "http.response.body", "body": b"}"})
    assert transport.writes[1:] == [b"{", b"}"]
    with pytest.raises(RuntimeError, match="unexpected ASGI message"):
        await cycle.send({"type": "http.response.body", "body": b"}"})


@pytest.mark.parametrize("respond", ["start", "respond"])
async def test_a_response_may_close_its_connection(respond: str) -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    if respond == "start":
        cycle.start(408, [(b"connection", b"close"), (b"content-length", b"0")])
        cycle.end(b"")
    else:
        cycle.respond(408, [(b"connection", b"close")], b"")
    assert transport.written.count(b"connection: close") == 1
    assert not cycle.keep_alive


async def test_a_response_before_the_end_of_the_body_closes() -> None:
    transport = Transport()
    cycle = cycle_on(transport, body_follows=True)
    cycle.respond(413, [], b"")
    assert transport.written.count(b"connection: close") == 1
    assert not cycle.keep_alive


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"0")]])
async def test_a_204_has_no_content_length(headers: list[tuple[bytes, bytes]]) -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    cycle.respond(204, headers, b"")
    assert transport.writes == [b"HTTP/1.1 204 No Content\r\ndate: today\r\n\r\n"]
    assert cycle.response_complete


@pytest.mark.parametrize("declared", [b"1", b"3"])
async def test_a_body_that_differs_from_its_content_length_is_a_fault(declared: bytes) -> None:
    cycle = cycle_on(Transport())
    cycle.start(200, [(b"content-length", declared)])
    with pytest.raises(RuntimeError, match="than its content-length"):
        cycle.end(b"{}")


@pytest.mark.parametrize("value", [b"a\r\nx-injected: 1", b"a\nb", b"a\rb", b"a\0b"])
async def test_a_header_cannot_hold_another(value: bytes) -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    with pytest.raises(RuntimeError, match="line break"):
        cycle.respond(200, [(b"x", value)], b"{}")
    assert transport.writes == []
    assert not cycle.response_started  # another response can be sent


# The application ------------------------------------------------------------------------------------------------------


async def responds(scope: Any, receive: Any, send: Any) -> None:
    scope["extensions"][DIRECT_RESPONSE].respond(200, [OK], b"{}")


async def starts(scope: Any, receive: Any, send: Any) -> None:
    scope["extensions"][DIRECT_RESPONSE].start(200, [OK])


async def returns(scope: Any, receive: Any, send: Any) -> None:
    pass


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError


@pytest.mark.parametrize(
    ("app", "status", "keeps_alive"),
    [(responds, b"200", True), (starts, b"", False), (returns, b"500", False), (fails, b"500", False)],
)
async def test_every_end_of_an_application_ends_its_response(app: Any, status: bytes, keeps_alive: bool) -> None:
    transport, tasks = Transport(), set[asyncio.Task[None]]()
    cycle = cycle_on(transport)
    cycle.run(app, asyncio.get_running_loop(), tasks)
    await asyncio.wait(list(tasks))
    assert transport.written[9:12] == status
    assert (cycle.keep_alive and not transport.is_closing()) is keeps_alive
    assert not tasks


async def test_a_request_that_is_over_leaves_nothing_to_the_collector() -> None:
    cycle, tasks = cycle_on(Transport()), set[asyncio.Task[None]]()
    reference = weakref.ref(cycle)
    cycle.run(responds, asyncio.get_running_loop(), tasks)
    gc.disable()
    try:
        await asyncio.wait(list(tasks))
        del cycle
        assert reference() is None
    finally:
        gc.enable()
