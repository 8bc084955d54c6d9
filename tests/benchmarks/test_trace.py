"""Traces of requests to the running service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "src" / "mcpmeter"


@pytest.fixture(scope="module")
def traces() -> Mapping[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks.trace import measure

        return measure(3)


def test_a_trace_has_the_packages_files_by_folder(traces: Mapping[str, Any]) -> None:
    for trace in traces.values():
        assert all((PACKAGE / file).is_file() for file in trace.functions)
        assert trace.folders.total() == trace.file_count > 10
        assert trace.function_count > trace.file_count


def test_a_request_enters_the_http_protocol_first(traces: Mapping[str, Any]) -> None:
    firsts = {next(iter(trace.functions)) for trace in traces.values()}
    assert len(firsts) == 1
    assert "protocol" in firsts.pop()


def test_a_warm_request_runs_through_few_files(traces: Mapping[str, Any]) -> None:
    assert traces["call"].file_count <= 36
    assert traces["call"].folders["relay/"] <= 8
    assert traces["stream"].file_count <= 40


def test_a_call_is_traced_into_the_thread_of_the_ledger(traces: Mapping[str, Any]) -> None:
    assert any("writ" in file for file in traces["call"].functions if file.startswith("ledger/"))


def test_a_warm_request_imports_nothing(traces: Mapping[str, Any]) -> None:
    assert not [trace.name for trace in traces.values() for names in trace.functions.values() if "<module>" in names]


def test_functions_in_two_recordings_count() -> None:
    from benchmarks.trace import Trace

    first, second, tick = ("a/x.py", "f"), ("y.py", "g"), ("a/z.py", "tick")
    trace = Trace.of("call", [[first, second], [tick, first, second], [second, first]])
    assert trace.functions == {"a/x.py": ["f"], "y.py": ["g"]}
    assert trace.varying == {"a/z.py: tick": 1}
    assert trace.folders == {"a/": 1, "./": 1}
