"""The statistics of pairs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


# Ranks from tables of the sign test.
@pytest.mark.parametrize(("pairs", "low", "high"), [(6, 1, 6), (10, 2, 9), (30, 10, 21), (100, 40, 61)])
def test_the_interval_ends_at_the_sign_tests_ranks(pairs: int, low: int, high: int) -> None:
    from benchmarks.pairs import median_interval

    values = [float(value) for value in range(1, pairs + 1)]
    random.Random(1).shuffle(values)
    assert median_interval(values) == ((pairs + 1) / 2, low, high)


def test_too_few_values_have_no_interval() -> None:
    from benchmarks.pairs import median_interval

    with pytest.raises(ValueError, match="5 values"):
        median_interval([1.0] * 5)


def test_the_interval_has_the_median_in_95_of_100_runs() -> None:
    from benchmarks.pairs import median_interval

    draw = random.Random(1)
    intervals = [median_interval([draw.lognormvariate(0, 0.1) for _ in range(30)]) for _ in range(4000)]
    assert 0.95 < sum(one.low <= 1 <= one.high for one in intervals) / 4000 < 0.97


def test_common_drift_does_not_change_the_ratio(tmp_path: Path) -> None:
    from benchmarks.pairs import Side, result
    from benchmarks.processes import Server

    base, head = (Side(name, Server.__new__(Server), tmp_path) for name in ("base", "head"))
    base.call_us = [100.0 + 10 * number for number in range(6)]
    head.call_us = [0.9 * value for value in base.call_us]
    base.chunk_us = head.chunk_us = [25.0] * 6
    calls, chunks = result(base, head)
    assert calls.startswith("JSON call: head/base 0.900 (95 %: 0.900 to 0.900), median of 6 pairs; base 125.0 µs CPU")
    assert chunks.startswith("paced chunk: head/base 1.000 (95 %: 1.000 to 1.000)")


def test_a_folder_without_sources_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.pairs import main

    assert main([str(ROOT), str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"mcpmeter: {tmp_path} has no src/mcpmeter\n"


def test_cpu_time_is_finer_than_a_tick(tmp_path: Path) -> None:
    from benchmarks.cores import two_cores
    from benchmarks.peers import upstream
    from benchmarks.processes import free_port, running

    port = free_port()
    with running("u", upstream(tmp_path, port).argv, port=port, core=two_cores()[0], folder=tmp_path) as server:
        assert 0 < server.cpu_seconds() < 1
        assert round(server.cpu_seconds(), 2) != server.cpu_seconds()
