"""The deadline of a client that leaves a response unread, on a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.http.fakes import Transport

from mcpmeter.http.server.connections import ServerBounds, ServerTimeouts
from mcpmeter.http.server.protocol import ServerProtocol

MB = 2**20


class Clock:
    """An event loop's time and timers; what it should call soon, it calls at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[SimpleNamespace] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *values: object) -> None:
        callback(*values)

    def call_at(self, at: float, callback: Callable[[], object]) -> SimpleNamespace:
        timer = SimpleNamespace(when=lambda: at, callback=callback)
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.when() <= self.now]:
            self.timers.remove(timer)
            timer.callback()


def seconds_until_cut_off(unsent_bytes: int, bytes_per_second: int) -> int | None:
    """When a client that reads at this rate is disconnected; None if it reads everything."""
    clock, transport = Clock(), Transport()
    bounds = ServerBounds(timeouts=ServerTimeouts(headers_seconds=1e6, idle_seconds=1e6, response_seconds=60.0))
    config: Any = SimpleNamespace(loaded_app=None)
    state: Any = SimpleNamespace(total_requests=0, connections=set(), tasks=set(), default_headers=[])
    loop: Any = clock
    protocol = ServerProtocol(lambda error: ([], b""), config, state, {}, loop, bounds=bounds)
    protocol.connection_made(transport)  # type: ignore[arg-type]
    transport.unsent_bytes = unsent_bytes
    protocol.pause_writing()
    for second in range(10_000):
        if "abort" in transport.calls:
            return second
        transport.unsent_bytes = max(0, transport.unsent_bytes - bytes_per_second)
        if not transport.unsent_bytes:
            protocol.resume_writing()
            return None
        clock.advance(1)
    raise AssertionError("never cut off")


def test_a_client_that_reads_nothing_is_cut_off_after_the_deadline() -> None:
    assert seconds_until_cut_off(3 * MB, 0) == 60


def test_a_client_that_reads_steadily_gets_all_of_its_response() -> None:
    assert seconds_until_cut_off(3 * MB, 17 * 1024) is None
    assert seconds_until_cut_off(64 * MB, 20 * 1024) is None


def test_a_client_that_reads_a_byte_a_second_is_cut_off() -> None:
    assert seconds_until_cut_off(3 * MB, 1) in range(252, 269)  # 60 s, and one second per 16 KiB of 3 MiB
