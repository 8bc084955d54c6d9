"""The compiled upstream and load, with each other and with faulty servers."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
CORE = min(os.sched_getaffinity(0))
IO_URING_SETUP = 425
"""The system call's number, the same on every machine but Alpha."""


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture(params=["io_uring, or what the kernel allows", "epoll"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The interface of load and upstream to the kernel."""
    if request.param == "epoll":
        monkeypatch.setenv("BENCH_LOOP", "epoll")
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, loop: str) -> Iterator[Any]:
    from benchmarks.peers import upstream
    from benchmarks.processes import free_port, running

    port = free_port()
    with running("upstream", upstream(tmp_path, port).argv, port=port, core=CORE, folder=tmp_path) as started:
        yield started


def test_the_upstream_passes_the_checks(server: Any) -> None:
    from benchmarks.load import check_call, check_stream
    from benchmarks.peers import OPENAI

    check_call(server, OPENAI, rebuilds=False)
    check_stream(server, OPENAI, rebuilds=False)


@pytest.mark.parametrize("pace_us", [0, 500])
def test_every_chunk_is_counted(server: Any, tmp_path: Path, pace_us: int) -> None:
    from benchmarks.load import CHUNKS, Burst, press
    from benchmarks.peers import OPENAI

    load = press(server, OPENAI, Burst("s", 8, 0.1, stream=True, pace_us=pace_us), folder=tmp_path, core=CORE)
    assert load.calls >= 8
    assert load.chunks == load.calls * CHUNKS


def test_a_constant_rate_makes_every_due_call(server: Any, tmp_path: Path) -> None:
    from benchmarks.load import Burst, press
    from benchmarks.peers import OPENAI

    load = press(server, OPENAI, Burst("r", 8, 0.5, rate=100), folder=tmp_path, core=CORE)
    assert load.calls == load.due == 50
    assert load.carried


def test_the_load_reports_its_kernel_interface(server: Any, tmp_path: Path, loop: str) -> None:
    from benchmarks.load import Burst, press
    from benchmarks.peers import OPENAI

    load = press(server, OPENAI, Burst("j", 8, 0.05), folder=tmp_path, core=CORE)
    offered = loop != "epoll" and _kernel_offers_io_uring()
    assert load.loop == ("io_uring" if offered else "epoll")


def test_epoll_is_used_if_the_kernel_refuses_io_uring(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1, initializer=_refuse_io_uring) as refused:
        assert not refused.submit(_kernel_offers_io_uring).result()
        load = refused.submit(_run_streams, tmp_path).result()
    assert load.loop == "epoll"
    assert load.chunks == load.calls * 100 > 0


def test_a_slow_reader_gets_every_byte_in_order(server: Any) -> None:
    request = b'POST / HTTP/1.1\r\nContent-Length: 13\r\n\r\n"stream":true'
    many = 300  # 9 MB of responses, more than a socket buffers
    with socket.socket() as slow, socket.create_connection(("127.0.0.1", server.port)) as quick:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(request * many)
        quick.sendall(request)
        one = bytearray()
        while not one.endswith(b"\r\n0\r\n\r\n"):
            one += _receive(quick, 1)
        quick.sendall(request * many)  # served in turns: the slow client has been served too when these arrive
        assert _receive(quick, many * len(one)) == one * many
        assert _receive(slow, many * len(one)) == one * many


def test_more_connections_than_buffers_are_served(server: Any, tmp_path: Path) -> None:
    from benchmarks.load import Burst, press
    from benchmarks.peers import OPENAI

    assert press(server, OPENAI, Burst("j", 900, 0.1), folder=tmp_path, core=CORE).calls >= 900


@pytest.mark.parametrize("reads", [0, 300])
def test_disconnects_do_not_affect_other_clients(server: Any, reads: int) -> None:
    from benchmarks.load import Burst, check_stream
    from benchmarks.peers import OPENAI

    body = Burst("s", 1, 1, stream=True, pace_us=500).body
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head + body)
            if reads:
                client.recv(reads)
    check_stream(server, OPENAI, rebuilds=False)


def test_a_request_in_pieces_gets_one_response(server: Any) -> None:
    from benchmarks.load import Burst

    body = Burst("j", 1, 1).body
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(request), 60):
            client.sendall(request[at : at + 60])
        first = _read_response(client)
        client.sendall(request)
        assert first == _read_response(client)  # nothing in between
    assert first.startswith(b"HTTP/1.1 200 OK")


def test_a_closed_idle_connection_is_reopened(tmp_path: Path, loop: str) -> None:
    from benchmarks.load import Burst, press
    from benchmarks.peers import OPENAI

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        stop = threading.Event()
        thread = threading.Thread(target=_respond_and_close, args=(listener, stop))
        thread.start()
        closing = _Bad(listener.getsockname()[1])
        try:
            load = press(closing, OPENAI, Burst("t", 1, 0.5), folder=tmp_path, core=CORE)  # type: ignore[arg-type]
        finally:
            stop.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()
    assert load.calls > 1


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "'not_2xx': 1"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\ndata: {"a":1}\n', "'broken_streams': 1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: [DONE]\n\n", "'socket_errors': 1"),
    ],
)
def test_a_bad_response_voids_the_burst(tmp_path: Path, loop: str, response: bytes, fault: str) -> None:
    from benchmarks.load import Burst, press
    from benchmarks.peers import OPENAI
    from benchmarks.processes import BenchError

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_respond_once, args=(listener, response))
        thread.start()
        bad = _Bad(listener.getsockname()[1])
        with pytest.raises(BenchError, match=fault):
            press(bad, OPENAI, Burst("b", 1, 0.001, rate=1000, stream=True), folder=tmp_path, core=CORE)  # type: ignore[arg-type]
        thread.join()


def test_two_flushes_leave_no_file(tmp_path: Path) -> None:
    from benchmarks.processes import two_flushes_ms

    cores = os.sched_getaffinity(0)
    assert two_flushes_ms(tmp_path, CORE, tries=3) > 0
    assert (list(tmp_path.iterdir()), os.sched_getaffinity(0)) == ([], cores)


def test_cold_factor_restores_the_cores() -> None:
    from benchmarks.processes import cold_factor

    cores = os.sched_getaffinity(0)
    assert cold_factor(CORE, tries=3) > 0
    assert os.sched_getaffinity(0) == cores


def _read_response(client: socket.socket) -> bytes:
    expected, received = (ROOT / "benchmarks" / "answer.json").read_bytes().strip(), b""
    while not received.endswith(expected):
        received += client.recv(65536)
    return received


def _kernel_offers_io_uring() -> bool:
    """Whether the kernel evaluates the (invalid) arguments, and is new enough for wire_uring.h."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(IO_URING_SETUP, 1, None)
    version = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return ctypes.get_errno() == errno.EFAULT and version >= (6, 1)


def _refuse_io_uring() -> None:
    """Refuse io_uring permanently for this thread and its child processes, as container runtimes do."""
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    load_number, jump_if_equal, give_back = 0x20, 0x15, 0x06
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    rules = [(load_number, 0, 0, 0), (jump_if_equal, 0, 1, IO_URING_SETUP), (give_back, 0, 0, refuse)]
    packed = b"".join(struct.pack("HBBI", *rule) for rule in [*rules, (give_back, 0, 0, allow)])
    program = struct.pack("HP", len(packed) // 8, ctypes.addressof(kept := ctypes.create_string_buffer(packed)))
    libc = ctypes.CDLL(None, use_errno=True)
    refused = libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, by_filter, program, 0, 0)
    del kept
    if refused:
        raise OSError(ctypes.get_errno(), "seccomp")


def _run_streams(folder: Path) -> Any:
    from benchmarks.load import Burst, press
    from benchmarks.peers import OPENAI, upstream
    from benchmarks.processes import free_port, running

    port = free_port()
    with running("upstream", upstream(folder, port).argv, port=port, core=CORE, folder=folder) as server:
        return press(server, OPENAI, Burst("s", 8, 0.05, stream=True), folder=folder, core=CORE)


def _receive(client: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        got = client.recv(min(65536, length - len(received)))
        assert got
        received += got
    return bytes(received)


class _Bad:
    name = "bad"

    def __init__(self, port: int) -> None:
        self.port = port

    def cpu_seconds(self) -> float:
        return 0.0


def _respond_once(listener: socket.socket, response: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(response)


def _respond_and_close(listener: socket.socket, stop: threading.Event) -> None:
    """Closes each connection after a response that allows keep-alive."""
    while not stop.is_set():
        connection, _ = listener.accept()
        with connection:
            if connection.recv(65536):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
