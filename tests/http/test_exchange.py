"""What an exchange adds to the connection under it: time limits."""

from __future__ import annotations

import pytest
from tests.http.fakes import Transport, cycle_on

from mcpmeter.errors import ClientDisconnected
from mcpmeter.http.exchange import HttpExchange


async def test_a_client_that_never_reads_counts_as_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcpmeter.http.exchange.DRAIN_TIMEOUT_SECONDS", 0.01)
    transport = Transport()
    cycle = cycle_on(transport)
    exchange = HttpExchange(cycle.scope, endpoint="/")
    await exchange.start(200, [])
    await exchange.send(b"a")
    cycle._flow.pause_writing()
    for send in (exchange.send, exchange.end):
        with pytest.raises(ClientDisconnected, match="stopped reading"):
            await send(b"b")
    assert transport.written.endswith(b"1\r\na\r\n")
