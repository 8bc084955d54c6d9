"""A transport that keeps what is done to it, and a request on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mcpmeter.http.exchange import DIRECT_RESPONSE
from mcpmeter.http.server.cycle import Flow, RequestCycle


class Transport:
    """Takes writes until it is closed. `calls` are all calls but writes, in order."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.calls: list[str] = []
        self.unsent_bytes = 0

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    @property
    def closings(self) -> list[str]:
        return [call for call in self.calls if call in ("close", "abort", "write_eof")]

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 5000) if name == "peername" else None

    def writelines(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def set_write_buffer_limits(self, high: int) -> None:
        self.high_water = high

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return "close" in self.calls or "abort" in self.calls

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def write_eof(self) -> None:
        self.calls.append("write_eof")

    def pause_reading(self) -> None:
        self.calls.append("pause_reading")

    def resume_reading(self) -> None:
        self.calls.append("resume_reading")


def cycle_on(
    transport: Transport,
    scope: dict[str, Any] | None = None,
    *,
    keep_alive: bool = True,
    expects: bool = False,
    body_follows: bool = False,
) -> RequestCycle:
    """A request whose headers were read, and its body too unless that follows, of a connection that is a fake."""
    scope = {"type": "http", "method": "POST", "http_version": "1.1", "headers": [], **(scope or {})}
    cycle = RequestCycle(
        scope,
        transport,  # type: ignore[arg-type]
        Flow(transport),  # type: ignore[arg-type]
        default_headers=[(b"date", b"today")],
        expects_100_continue=expects,
        keep_alive=keep_alive,
        on_complete=lambda: None,
    )
    scope["extensions"] = {DIRECT_RESPONSE: cycle}
    if not body_follows:
        cycle.end_body()
    return cycle
