"""Floods of clients that hold what they get: memory stays bounded, and health checks are answered meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mcpmeter.demo.stack import free_port

PROBE = Path(__file__).with_name("flood_probe.py")
MAX_GROWTH_MB = 128
MAX_HEALTH_SECONDS = 1.0
MAX_CPU_SECONDS = 5.0
"""A quadratic service takes more, even on a fast machine."""
SECONDS_AT_REST = 2.0
"""A service that shares its processor works little in one."""
CPU_SECONDS_AT_REST = 0.1
"""Health checks alone take less."""
MB = 1024 * 1024

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SMALL = b'{"model":"small","messages":[{"role":"user","content":"Hi"}]}'
COMPLETION = {
    "id": "x", "object": "chat.completion", "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip
COMPLETED = {"type": "response.completed", "response": {"model": "m", "status": "completed", "output": [],
             "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}}}  # fmt: skip


def completion(text: str) -> bytes:
    body = json.loads(json.dumps(COMPLETION))
    body["choices"][0]["message"]["content"] = text
    return json.dumps(body).encode()


def chunked(data: bytes, size: int) -> bytes:
    parts = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


class Provider:
    """Answers as the model's name says, by one thread per connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self._listener.getsockname()[1]
        self._never = threading.Event()
        self._large = completion("x" * 3_000_000)
        event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 8000)
        self._events = chunked(event, MB) * (MB // len(event))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as reader:
                while reader.readline():
                    length = 0
                    while (line := reader.readline().lower()) != b"\r\n":
                        length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
                    self._answer(connection, json.loads(reader.read(length))["model"])
        except OSError:
            pass

    def _answer(self, connection: socket.socket, model: str) -> None:
        if model.startswith("event"):
            connection.sendall(self._head(stream=True) + self._event(int(model.removeprefix("event-"))))
        elif model == "stream":
            connection.sendall(self._head(stream=True) + self._events)
            self._never.wait()
        else:
            body = self._large if model == "large" else completion("Hi")
            connection.sendall(self._head(len(body)) + body)

    @staticmethod
    def _head(length: int = 0, *, stream: bool = False) -> bytes:
        kind = b"text/event-stream\r\ntransfer-encoding: chunked" if stream else b"application/json"
        size = b"" if stream else b"\r\ncontent-length: %d" % length
        return b"HTTP/1.1 200 OK\r\ncontent-type: %b%b\r\n\r\n" % (kind, size)

    @staticmethod
    def _event(size: int) -> bytes:
        event = b'data: {"type":"response.image_generation_call.partial_image","partial_image_b64":"%b"}\n\n'
        last = b"data: %b\n\n" % json.dumps(COMPLETED).encode()
        return chunked(event % (b"A" * (7 * MB)), size) + chunked(last, len(last)) + b"0\r\n\r\n"

    def close(self) -> None:
        self._listener.close()
        self._never.set()


@dataclass
class Service:
    """The installed command before a hostile provider, with the default limits."""

    running: Any
    port: int
    held: list[socket.socket] = field(default_factory=list)

    @property
    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.running.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.running.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connect(self, data: bytes = b"", *, receives: int = 0) -> socket.socket:
        """A connection that is held open and never read."""
        connection = socket.socket()
        if receives:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", self.port))
        self.held.append(connection)
        self.send(connection, data)
        return connection

    @staticmethod
    def send(connection: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it may be refused by now
            connection.sendall(data)

    def ask(self, path: bytes, body: bytes) -> bytes:
        """The whole answer to a request."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % (path, len(body)) + body)
            return b"".join(iter(lambda: connection.recv(MB), b""))


@pytest.fixture
def provider() -> Iterator[Provider]:
    with_many_files()
    running = Provider()
    yield running
    running.close()


def with_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 8192:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))


@pytest.fixture
def serve(start: Callable[..., Any], provider: Provider, tmp_path: Path) -> Callable[..., Any]:
    """Run a service; `through` goes before its command."""

    @contextlib.contextmanager
    def running(*, through: tuple[str, ...] = ()) -> Iterator[Service]:
        config, port = tmp_path / "mcpmeter.yaml", free_port()
        upstream = f"http://127.0.0.1:{provider.port}/v1"
        config.write_text(
            f"server: {{port: {port}}}\nledger: {{path: '{tmp_path / f'{port}.db'}'}}\n"
            f"providers: [{{name: up, type: generic, base_url: '{upstream}', api_key: sk-up, models: ['*']}}]\n"
        )
        service = Service(start("serve", "--config", config, through=through), port)
        service.running.says("Ledger")
        for _ in range(20):
            assert b"HTTP/1.1 200" in service.ask(b"/v1/chat/completions", SMALL)
        yield service
        for connection in service.held:
            connection.close()
        assert service.running.end().code == 0

    return running


def silent(service: Service, count: int) -> None:
    for _ in range(count):
        service.connect()


def trailers(service: Service, mb: int) -> None:
    connection = service.connect(CHAT + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
    for _ in range(mb * 16):
        service.send(connection, b"x-a: b\r\n" * 8192)


def half_sent_bodies(service: Service, count: int) -> None:
    for _ in range(count):
        service.connect(CHAT + b"Content-Length: 9000000\r\n\r\n" + b" " * 8_900_000)


def unread(service: Service, model: str, count: int) -> None:
    body = SMALL.replace(b'"small"', b'"%b","stream":%b' % (model.encode(), b"true" if model == "stream" else b"false"))
    for _ in range(count):
        service.connect(CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body, receives=4096)


def unread_answers(service: Service, count: int) -> None:
    unread(service, "large", count)


def unread_streams(service: Service, count: int) -> None:
    unread(service, "stream", count)


FLOODS: dict[str, tuple[Callable[[Service, int], None], int, int]] = {
    "1,000 silent connections": (silent, 50, 1000),
    "64 MB of trailers": (trailers, 1, 64),
    "100 half-sent bodies of 9 MB": (half_sent_bodies, 12, 100),
    "1,000 unread responses of 3 MB": (unread_answers, 30, 1000),
    "1,000 unread streams of 1 MB": (unread_streams, 30, 1000),
}


def measure(service: Service, flood: Callable[[], None]) -> tuple[float, list[float]]:
    """The highest growth of memory until a flood has passed, in MB, and the seconds of health checks, sorted."""
    before, peak = service.rss_mb, 0.0
    prober = subprocess.Popen([sys.executable, PROBE, str(service.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    flooding = threading.Thread(target=flood)
    flooding.start()
    busy_until, cpu_seconds = time.monotonic() + SECONDS_AT_REST, service.cpu_seconds
    while flooding.is_alive() or time.monotonic() < busy_until:
        peak = max(peak, service.rss_mb)
        if service.cpu_seconds > cpu_seconds + CPU_SECONDS_AT_REST:
            busy_until, cpu_seconds = time.monotonic() + SECONDS_AT_REST, service.cpu_seconds
        time.sleep(0.02)
    output, _ = prober.communicate(timeout=60)
    return peak - before, sorted(json.loads(output))


@pytest.mark.trial
def test_floods_leave_memory_bounded_and_health_checks_answered(serve, trials):
    figures: dict[str, object] = {}
    for name, (flood, part, whole) in FLOODS.items():
        with serve() as service:
            growth, health = measure(service, partial(flood, service, whole if trials.full else part))
        figures[f"{name}: growth of resident memory, MB"] = growth
        figures[f"{name}: health checks"] = len(health)
        figures[f"{name}: health check, seconds, p99"] = health[int(len(health) * 0.99)]
    trials.record(
        "Bounds",
        "One client floods a service with default limits, and holds what it has until the service is at rest. "
        "Meanwhile another process requests `/-/healthy` on new connections. The growth is the highest resident memory "
        "since the flood began, minus what the service had after its first calls.",
        figures,
    )
    for name, value in figures.items():
        limit = MAX_GROWTH_MB if name.endswith("MB") else MAX_HEALTH_SECONDS if name.endswith("p99") else None
        assert limit is None or value <= limit, (name, figures)


def cpu_of_event(service: Service, size: int) -> float:
    """CPU seconds of a response with one event of 7 MB in parts of a size."""
    before = service.cpu_seconds
    body = b'{"model":"event-%d","input":"x","stream":true}' % size
    assert b"response.completed" in service.ask(b"/v1/responses", body)
    return service.cpu_seconds - before


@pytest.mark.trial
def test_an_event_in_small_parts_costs_as_much_as_in_large_ones(serve, trials):
    rounds = 30 if trials.full else 1
    with serve() as service:
        cpu_of_event(service, 65_536)
        seconds = {size: [cpu_of_event(service, size) for _ in range(rounds)] for size in (65_536, 1400, 256)}
    mean = {size: statistics.mean(values) for size, values in seconds.items()}
    trials.record(
        "Linearity",
        f"One server-sent event of 7 MB, such as a partial image, is relayed in parts of several sizes, {rounds} times "
        "each. CPU seconds are the service's own, user and system together.",
        {
            **{f"CPU seconds in parts of {size:,} bytes, mean": value for size, value in mean.items()},
            "parts of 256 bytes against parts of 65,536 bytes, ratio": mean[256] / max(mean[65_536], 0.01),
        },
    )
    assert mean[256] < MAX_CPU_SECONDS
