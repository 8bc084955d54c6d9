"""A receiver of Alertmanager's notifications on loopback: the demo prints what would have paged somebody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Final

import msgspec
from aiohttp import web

MAX_BYTES: Final = 4 * 1024 * 1024
Text = Annotated[str, msgspec.Meta(max_length=10_000)]


class Notice(msgspec.Struct, frozen=True):
    """One alert of a notification, as Alertmanager's webhook sends it (its documentation, `webhook_config`)."""

    status: Text
    labels: Mapping[str, Text]
    annotations: Mapping[str, Text] = {}


class _Notification(msgspec.Struct, frozen=True):
    alerts: list[Notice]
    receiver: Text = ""


_decoder = msgspec.json.Decoder(_Notification)


@asynccontextmanager
async def pager(told: Callable[[str, Notice], None]) -> AsyncIterator[str]:
    """Listen on a free port; `told` gets the receiver and each alert. Yields the URL to notify."""
    app = web.Application(client_max_size=MAX_BYTES)

    async def take(request: web.Request) -> web.Response:
        try:
            notification = _decoder.decode(await request.read())
        except msgspec.DecodeError:
            return web.Response(status=400, text="This takes Alertmanager's webhook.\n")
        for notice in notification.alerts:
            told(notification.receiver, notice)
        return web.Response(text="ok\n")

    app.router.add_post("/", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()
