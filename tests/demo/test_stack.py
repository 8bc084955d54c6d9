"""Ports for programs that cannot inherit a socket."""

from __future__ import annotations

import socket

import pytest

from mcpmeter.demo import stack
from mcpmeter.errors import PortTaken


def test_free_port_skips_taken_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", stack.free_port()))
        second.bind(("127.0.0.1", stack.free_port()))
        taken = [first.getsockname()[1], second.getsockname()[1]]
        left = stack.free_port()
        monkeypatch.setattr(stack, "PORTS", [*taken, left])
        monkeypatch.setattr(stack, "PORTS_TO_TRY", 3)
        assert {stack.free_port() for _ in range(20)} == {left}
        monkeypatch.setattr(stack, "PORTS", taken)
        monkeypatch.setattr(stack, "PORTS_TO_TRY", 2)
        with pytest.raises(PortTaken):
            stack.free_port()
