"""The compiled upstream and load, against each other and against servers that do not keep their word."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
CORE = min(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    from benchmarks.peers import upstream
    from benchmarks.processes import free_port, running

    port = free_port()
    with running("upstream", upstream(tmp_path, port).argv, port=port, core=CORE, folder=tmp_path) as started:
        yield started


def test_the_upstream_answers_and_streams_what_the_checks_want(server: Any) -> None:
    from benchmarks.load import ask_once, stream_once
    from benchmarks.peers import OPENAI

    ask_once(server, OPENAI, rebuilds=False)
    stream_once(server, OPENAI, rebuilds=False)


@pytest.mark.parametrize("pace_us", [0, 500])
def test_every_chunk_of_every_stream_is_counted(server: Any, tmp_path: Path, pace_us: int) -> None:
    from benchmarks.load import CHUNKS, Burst, press
    from benchmarks.peers import OPENAI

    load = press(server, OPENAI, Burst("s", 8, 0.1, stream=True, pace_us=pace_us), folder=tmp_path, core=CORE)
    assert load.calls >= 8
    assert load.chunks == load.calls * CHUNKS


def test_a_constant_rate_makes_the_calls_that_were_due(server: Any, tmp_path: Path) -> None:
    from benchmarks.load import Burst, press
    from benchmarks.peers import OPENAI

    load = press(server, OPENAI, Burst("r", 8, 0.5, rate=100), folder=tmp_path, core=CORE)
    assert load.calls == load.due == 50
    assert load.carried


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "'not_2xx': 1"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\ndata: {"a":1}\n', "'broken_streams': 1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: [DONE]\n\n", "'socket_errors': 1"),
    ],
)
def test_a_bad_answer_voids_the_burst(tmp_path: Path, answer: bytes, fault: str) -> None:
    from benchmarks.load import Burst, press
    from benchmarks.peers import OPENAI
    from benchmarks.processes import BenchError

    with socket.create_server(("127.0.0.1", 0)) as listener:
        teller = threading.Thread(target=_tell_once, args=(listener, answer))
        teller.start()
        bad = _Bad(listener.getsockname()[1])
        with pytest.raises(BenchError, match=fault):
            press(bad, OPENAI, Burst("b", 1, 0.001, rate=1000, stream=True), folder=tmp_path, core=CORE)  # type: ignore[arg-type]
        teller.join()


def test_two_flushes_are_timed_on_a_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    from benchmarks.processes import two_flushes_ms

    cores = os.sched_getaffinity(0)
    assert two_flushes_ms(tmp_path, CORE, tries=3) > 0
    assert (list(tmp_path.iterdir()), os.sched_getaffinity(0)) == ([], cores)


def test_work_after_a_pause_is_compared_with_work_without_one_on_the_core_that_is_asked_for() -> None:
    from benchmarks.processes import cold_factor

    cores = os.sched_getaffinity(0)
    assert cold_factor(CORE, tries=3) > 0
    assert os.sched_getaffinity(0) == cores


class _Bad:
    name = "bad"

    def __init__(self, port: int) -> None:
        self.port = port

    def cpu_seconds(self) -> float:
        return 0.0


def _tell_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)
