"""The report of the bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcpmeter.config import load

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def results(name: str, p50_us: float, flushes_ms: float | None = None) -> Any:
    from benchmarks.load import Load
    from benchmarks.peers import PEERS
    from benchmarks.results import Results

    results_ = Results(PEERS[name], rss_bytes=[1], two_flushes_ms=[flushes_ms] if flushes_ms else [])
    for burst in ("json-32", "streams", "rate-200", "rate-500"):
        results_.add(Load(burst, 100, 100, 1.0, 0.1, p50_us, p50_us, 0.0, 0.0, loop="io_uring"))
    return results_


def test_both_ledger_modes_have_an_aim_for_the_added_median() -> None:
    from benchmarks.report import ratios

    lines = ratios([results("direct", 100), results("relay", 900, 0.55), results("relay-normal", 600, 0.55)])
    aim = "at the median (aim: at most 0.5;"
    assert [line for line in lines if line.startswith("- 200 calls/s")] == [
        f"- 200 calls/s: relay (FULL) adds 0.80 ms {aim} MISSED); two flushes alone: 0.55 ms",
        f"- 200 calls/s: relay-normal adds 0.50 ms {aim} held)",
    ]


def test_cold_caches_are_reported() -> None:
    from benchmarks.report import ratios

    relay = results("relay", 900, 0.55)
    relay.cold_factors += [2.6, 2.5, 1.1]
    assert "the same work took 2.5 times as long 5 ms after its last run" in ratios([results("direct", 100), relay])[-1]


@pytest.mark.parametrize(("name", "synchronous"), [("relay", "full"), ("relay-normal", "normal")])
def test_our_rows_run_with_the_mode_in_their_title(tmp_path: Path, name: str, synchronous: str) -> None:
    from benchmarks.peers import PEERS

    peer = PEERS[name]
    assert peer.launch is not None
    config = Path(peer.launch(tmp_path, 8000, 9000).argv[-1])
    assert load(config, {}).ledger.synchronous == synchronous
    assert synchronous.upper() in peer.title


def test_the_kernel_interface_is_reported() -> None:
    from benchmarks.report import ratios

    assert ratios([results("direct", 100)])[0].startswith(
        "- direct: 100 JSON responses/s, 10,000 chunks/s, with io_uring (aim"
    )


def test_cores_are_kept_awake_if_allowed(tmp_path: Path) -> None:
    from benchmarks.cores import KEPT_AWAKE, MAY_SLEEP, kept_awake

    request = tmp_path / "cpu_dma_latency"
    request.touch()
    with kept_awake(request) as state:
        assert (state, request.read_bytes()) == (KEPT_AWAKE, bytes(4))
    with kept_awake(tmp_path / "none" / "cpu_dma_latency") as state:
        assert state == MAY_SLEEP
