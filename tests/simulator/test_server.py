"""The simulator's server: bounded bodies, and a close that ends every task."""

import asyncio

import httpx2
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from mcpmeter.errors import BodyTooLarge
from mcpmeter.simulator.server import read_body, serving, until_cancelled


async def test_close_ends_requests_in_flight_and_leaves_no_task(caplog):
    started = asyncio.Event()

    async def stall(scope, receive, send):
        started.set()
        await until_cancelled()

    before = asyncio.all_tasks()
    async with serving(stall) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await started.wait()
    assert asyncio.all_tasks() == before
    assert await reader.read() == b""
    assert caplog.records == []
    writer.close()


async def test_a_body_above_the_limit_is_refused():
    async def app(scope, receive, send):
        try:
            body = await read_body(Request(scope, receive), 1 << 20)
            response = PlainTextResponse(str(len(body)))
        except BodyTooLarge as error:
            response = PlainTextResponse(error.message, error.http_status)
        await response(scope, receive, send)

    async with serving(app) as url, httpx2.AsyncClient(verify=False) as http:
        fits = await http.post(url, content=b"x" * (1 << 20))
        refused = await http.post(url, content=b"x" * ((1 << 20) + 1))
    assert fits.text == str(1 << 20)
    assert (refused.status_code, refused.text) == (413, "The body is over 1 MiB.")
