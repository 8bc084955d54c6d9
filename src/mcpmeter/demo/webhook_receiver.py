"""Receives Alertmanager's webhook on loopback, so that the demo can print alerts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mcpmeter.errors import BodyTooLarge
from mcpmeter.simulator.server import read_body, serving

MAX_BYTES: Final = 4 * 1024 * 1024
Text = Annotated[str, msgspec.Meta(max_length=10_000)]


class Notice(msgspec.Struct, frozen=True):
    """One alert of a notification (Alertmanager's documentation of `webhook_config`)."""

    status: Text
    labels: Mapping[str, Text]
    annotations: Mapping[str, Text] = {}


class _Notification(msgspec.Struct, frozen=True):
    alerts: list[Notice]
    receiver: Text = ""


_decoder = msgspec.json.Decoder(_Notification)


@asynccontextmanager
async def receive_alerts(on_alert: Callable[[str, Notice], None]) -> AsyncIterator[str]:
    """Listen on a free port and call `on_alert` with the receiver and each alert. Yields the webhook's URL."""

    async def receive(request: Request) -> PlainTextResponse:
        try:
            notification = _decoder.decode(await read_body(request, MAX_BYTES))
        except msgspec.DecodeError:
            return PlainTextResponse("Only Alertmanager's webhook is accepted.\n", 400)
        except BodyTooLarge as error:
            return PlainTextResponse(f"{error}\n", error.http_status)
        for notice in notification.alerts:
            on_alert(notification.receiver, notice)
        return PlainTextResponse("ok\n")

    async with serving(Starlette(routes=[Route("/", receive, methods=["POST"])])) as url:
        yield f"{url}/"
