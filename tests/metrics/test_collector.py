"""Scrapes are exact, valid in both formats, consistent, and rendered outside of the event loop."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mcpmeter.catalog import ALL, llm, mcp, money, service
from mcpmeter.metrics.collector import Exposition, MeterCollector
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import McpTarget, Settlement
from mcpmeter.service.pages import MetricsPage

Make = Callable[..., Settlement]
MakeRecorder = Callable[[], Recorder]

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
REAL_ACCEPT_HEADERS = {
    "Prometheus 2": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Prometheus 3": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "VictoriaMetrics": "text/plain;version=0.0.4;q=1,*/*;q=0.1",
    "curl": "*/*",
    "nothing": "",
}


def rendered(recorder: Recorder, accept: str = "") -> tuple[str, str]:
    body, content_type = Exposition(recorder).prepare(accept)()
    return body.decode(), content_type


def parsed(recorder: Recorder, accept: str = "") -> dict[str, Family]:
    text, content_type = rendered(recorder, accept)
    parse: Callable[[str], Iterator[Family]] = parse_openmetrics if "openmetrics" in content_type else parse_text
    return {family.name: family for family in parse(text)}


class TestNumbers:
    # Up to 2^23 dollars neighbouring nano-dollars are different floats, and the shortest text of each is exact.
    @given(st.integers(0, 2**23 * 10**9 - 1))
    def test_money_is_exact_to_the_nano_dollar(self, make_recorder: MakeRecorder, nanousd: int) -> None:
        recorder = make_recorder()
        recorder.add(money.COST, nanousd, model="gpt-4.1", team="search", provider="openai", source="listed")
        for accept in ("", OPENMETRICS):
            text, _ = rendered(recorder, accept)
            (shown,) = re.findall(r"^mcp_cost_usd_total\{.*\} (\S+)$", text, re.MULTILINE)
            assert Decimal(shown) == Decimal(nanousd).scaleb(-9)

    @given(st.lists(st.integers(0, 4 * 10**12), min_size=1, max_size=40), st.sampled_from(["", OPENMETRICS]))
    def test_a_histogram_agrees_with_itself_and_with_a_plain_count(
        self, make_recorder: MakeRecorder, durations_ns: list[int], accept: str
    ) -> None:
        recorder = make_recorder()
        for duration_ns in durations_ns:
            recorder.observe(mcp.REQUEST_DURATION, duration_ns, endpoint="/mcp", method="POST")
        samples = parsed(recorder, accept)["mcp_request_duration_seconds"].samples
        buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
        (count,) = (s.value for s in samples if s.name.endswith("_count"))
        (total,) = (s.value for s in samples if s.name.endswith("_sum"))
        assert [*buckets] == [*mcp.REQUEST_DURATION.buckets, math.inf]
        for bound, shown in buckets.items():
            assert shown == sum(bound == math.inf or duration <= round(bound * 1e9) for duration in durations_ns)
        assert count == buckets[math.inf] == len(durations_ns)
        assert total == sum(durations_ns) / 1e9

    def test_tokens_are_shown_as_counted(self, recorder: Recorder, make_settlement: Make) -> None:
        recorder.settle(make_settlement(usage_prompt_tokens=123_456_789_012, usage_completion_tokens=1))
        shown = {s.labels["token_type"]: s.value for s in parsed(recorder)["mcp_tokens"].samples}
        assert shown == {"prompt": 123_456_789_012, "completion": 1}

    def test_drift_and_rates_are_shown_as_quotients(self, recorder: Recorder, make_settlement: Make) -> None:
        recorder.settle(make_settlement(charge_reported_nanousd=1_050, charge_listed_nanousd=1_000))
        families = parsed(recorder)
        assert [s.value for s in families["mcp_cost_drift_ratio"].samples] == [1.05]
        samples = {s.name: s.value for s in families["mcp_output_tokens_per_second"].samples if "le" not in s.labels}
        assert samples["mcp_output_tokens_per_second_sum"] == 3.5

    def test_gauges_can_decrease(self, recorder: Recorder) -> None:
        recorder.set(service.LEDGER_OPEN_ROWS, 5)
        recorder.set(service.LEDGER_OPEN_ROWS, 2)
        assert [s.value for s in parsed(recorder)["mcp_ledger_open_rows"].samples] == [2]


class TestFormats:
    @pytest.mark.parametrize("client", REAL_ACCEPT_HEADERS)
    def test_every_scraper_gets_a_format_it_requests(self, recorder: Recorder, client: str) -> None:
        _, content_type = rendered(recorder, REAL_ACCEPT_HEADERS[client])
        wanted = (
            "application/openmetrics-text; version=1.0.0" if "Prometheus" in client else "text/plain; version=0.0.4"
        )
        assert content_type.startswith(wanted)
        assert {row.name.removesuffix("_total") for row in ALL} == set(parsed(recorder, REAL_ACCEPT_HEADERS[client]))

    @settings(max_examples=300)
    @given(
        st.lists(
            st.sampled_from(
                ["application/openmetrics-text", "text/plain", ";", ",", "version", "=", "1.0.0", "1.x", "2.0.0", ".",
                 "escaping", "allow-utf-8", "dots", "q=0.5", " ", "\x00", "\ud800", "ÿ", "-1", "9" * 5000, "\r\nX: y"]
            ),
            max_size=12,
        ).map("".join)
        | st.text(max_size=40)
    )  # fmt: skip
    def test_any_accept_header_yields_a_known_content_type(self, accept: str) -> None:
        text, content_type = rendered(Recorder(), accept)
        assert re.fullmatch(
            r"(application/openmetrics-text; version=1\.0\.0|text/plain; version=(0\.0\.4|1\.0\.0)); charset=utf-8"
            r"(; escaping=[a-z0-9-]+)?",
            content_type,
        )
        assert text

    @pytest.mark.parametrize("version", ["1.x", "x", "9.0.0", "2.0.0", "1.0.0.0rc", ""])
    def test_an_unknown_version_is_not_returned(self, version: str) -> None:
        _, content_type = rendered(Recorder(), f"application/openmetrics-text;version={version}")
        assert "version=1.0.0" in content_type or content_type.startswith("text/plain; version=0.0.4")
        assert not version or version == "1.0.0" or f"version={version};" not in content_type

    def test_creation_times_are_in_openmetrics_only(self, recorder: Recorder, make_settlement: Make) -> None:
        recorder.settle(make_settlement())
        assert "_created" not in rendered(recorder)[0]
        text, _ = rendered(recorder, OPENMETRICS)
        created = set(re.findall(r"^(\w+)_created", text, re.MULTILINE))
        assert {"mcp_requests", "mcp_tokens", "mcp_cost_usd"} <= created
        assert created <= {row.name.removesuffix("_total") for row in ALL if row.type == "counter"}

    def test_exemplars_are_on_buckets_in_openmetrics_only(self, recorder: Recorder, make_settlement: Make) -> None:
        recorder.settle(make_settlement(call_trace_id="ab" * 16, duration_ns=2_000_000_000))
        assert "ab" * 16 not in rendered(recorder)[0]
        families = parsed(recorder, OPENMETRICS).values()
        found = [(s, s.exemplar) for family in families for s in family.samples if s.exemplar]
        assert {sample.name.endswith("_bucket") for sample, _ in found} == {True}
        assert {tuple(exemplar.labels.items()) for _, exemplar in found} == {(("trace_id", "ab" * 16),)}
        (request,) = (e for s, e in found if s.name == "mcp_request_duration_seconds_bucket")
        assert request.value == 2.0

    @pytest.mark.parametrize("trace_id", ["x" * 129, "AB" * 16, "ab" * 15, "ab" * 16 + "\n", "\ud800" * 32, '"}' * 16])
    def test_an_invalid_trace_id_is_no_exemplar(self, recorder: Recorder, make_settlement: Make, trace_id: str) -> None:
        recorder.settle(make_settlement(call_trace_id=trace_id))
        families = parsed(recorder, OPENMETRICS)
        assert not any(s.exemplar for family in families.values() for s in family.samples)

    def test_other_collectors_follow_ours(self, recorder: Recorder) -> None:
        others = CollectorRegistry()
        Gauge("process_things", "Of the process.", registry=others).set(4)
        body, _ = Exposition(recorder, others).prepare("")()
        assert body.endswith(b"# TYPE process_things gauge\nprocess_things 4.0\n")


NASTY = [
    "\ud800",
    "a\x00b",
    'x"} 1\nmcp_active_requests 7\n#',
    "back\\slash",
    "\r\n",
    "\u2028",
    "",
    "🜚",
    "9" * 1_000_000,
]


class TestHostileText:
    @pytest.mark.parametrize("accept", ["", OPENMETRICS])
    @pytest.mark.parametrize("text", NASTY, ids=lambda text: ascii(text)[:20])
    def test_it_is_other_in_every_format(
        self, recorder: Recorder, make_settlement: Make, text: str, accept: str
    ) -> None:
        fields = dict.fromkeys(
            ("call_endpoint", "call_method", "call_team", "llm_provider", "llm_model", "llm_operation", "status",
             "error_type", "error_side", "otel_error_type", "response_model", "missing_reason", "call_trace_id"),
            text,
        )  # fmt: skip
        message = McpTarget(method=text, tool=text, protocol_version=text, server=text)
        recorder.settle(make_settlement(call_mcp=message, **fields))
        families = parsed(recorder, accept)
        assert set(families) == {row.name.removesuffix("_total") for row in ALL}
        (shown,) = families["mcp_requests"].samples[:1]
        assert shown.labels == {"endpoint": "other", "method": "other", "status": "other"}
        assert [s.value for s in families["mcp_active_requests"].samples] == [0]
        assert len(rendered(recorder, accept)[0]) < 60_000

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.text(max_size=10) | st.sampled_from(NASTY), min_size=1, max_size=5, unique=True))
    def test_registered_names_survive_a_round_trip(self, make_recorder: MakeRecorder, names: list[str]) -> None:
        recorder = make_recorder()
        recorder.label_allowlist.register("team", names)
        kept = set(recorder.label_allowlist.of("team"))
        for team in kept:
            recorder.add(money.COST, model="gpt-4.1", team=team, provider="openai", source="listed")
        for accept in ("", OPENMETRICS):
            shown = {s.labels["team"] for s in parsed(recorder, accept)["mcp_cost_usd"].samples}
            assert shown == kept


class TestRegistry:
    def test_any_registry_shows_the_recorded_values(self, recorder: Recorder, make_settlement: Make) -> None:
        registry = CollectorRegistry()
        registry.register(MeterCollector(recorder))
        recorder.settle(make_settlement())
        assert registry.get_sample_value(
            "mcp_requests_total", {"endpoint": "/v1/chat/completions", "method": "POST", "status": "200"}
        ) == 1  # fmt: skip
        families = {family.name: family for family in parse_text(generate_latest(registry).decode())}
        assert {row.name.removesuffix("_total") for row in ALL} <= set(families)

    def test_a_second_meter_in_one_registry_is_refused_by_name(self, make_recorder: MakeRecorder) -> None:
        registry = CollectorRegistry()
        registry.register(MeterCollector(make_recorder()))
        with pytest.raises(ValueError, match="mcp_requests"):
            registry.register(MeterCollector(make_recorder()))

    def test_two_meters_in_two_registries_are_independent(
        self, make_recorder: MakeRecorder, make_settlement: Make
    ) -> None:
        recorders = [make_recorder(), make_recorder()]
        registries = [CollectorRegistry(), CollectorRegistry()]
        for registry, recorder in zip(registries, recorders, strict=True):
            registry.register(MeterCollector(recorder))
        recorders[0].settle(make_settlement())
        labels = {"endpoint": "/v1/chat/completions", "method": "POST", "status": "200"}
        assert [registry.get_sample_value("mcp_requests_total", labels) for registry in registries] == [1, None]


class TestThreads:
    def test_scrapes_during_writes_never_fail_or_decrease(self, recorder: Recorder, make_settlement: Make) -> None:
        recorder.label_allowlist.register("team", [f"team-{number}" for number in range(3_000)])
        done = threading.Event()
        seen: list[float] = []
        faults: list[BaseException] = []

        def scrape() -> None:
            registry = CollectorRegistry()
            registry.register(MeterCollector(recorder))
            try:
                while not done.is_set():
                    families = registry.collect()
                    seen.append(sum(s.value for f in families if f.name == "mcp_cost_usd" for s in f.samples
                                    if s.name.endswith("_total")))  # fmt: skip
            except BaseException as fault:
                faults.append(fault)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        reader = threading.Thread(target=scrape)
        reader.start()
        try:
            for number in range(3_000):
                recorder.settle(make_settlement(call_team=f"team-{number}", charge_nanousd=10**9))
        finally:
            done.set()
            reader.join()
            sys.setswitchinterval(interval)
        assert faults == []
        assert seen == sorted(seen)
        assert len(recorder.families["mcp_cost_usd_total"].cells) == 3_000

    async def test_ten_thousand_series_are_rendered_in_another_thread(
        self, recorder: Recorder, make_settlement: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        teams = [f"team-{number}" for number in range(2_500)]
        recorder.label_allowlist.register("team", teams)
        for source in ("reported", "listed"):
            recorder.register_children(money.COST, model=["gpt-4.1"], team=teams, provider=["openai"], source=[source])
        for kind in ("prompt", "completion"):
            recorder.register_children(
                llm.TOKENS, model=["gpt-4.1"], token_type=[kind], team=teams, provider=["openai"], source=["reported"]
            )
        copied_in: list[int] = []
        rendered_in: list[int] = []
        monkeypatch.setattr(recorder, "snapshot", recording_thread(recorder.snapshot, copied_in))
        exposition = Exposition(recorder)
        prepare = exposition.prepare
        monkeypatch.setattr(exposition, "prepare", lambda accept: recording_thread(prepare(accept), rendered_in))

        page = await MetricsPage(
            recorder,
            exposition,
            store=StoreWithoutRows(),
            pending=set(),  # type: ignore[arg-type]
            quota=QuotaTracker(recorder),
            token=None,
        )(Request())

        assert page.body.count(b"\nmcp_tokens_total{") + page.body.count(b"\nmcp_cost_usd_total{") == 10_000
        assert copied_in == [threading.get_ident()]
        assert len(rendered_in) == 1
        assert rendered_in != copied_in


def recording_thread(call: Callable[[], Any], threads: list[int]) -> Callable[[], Any]:
    """The same call, which also records its thread."""

    def recorded() -> Any:
        threads.append(threading.get_ident())
        return call()

    return recorded


class StoreWithoutRows:
    open_rows = 0
    healthy = True


class Request:
    """The attributes that the page reads."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.secret: str | None = None


@pytest.mark.parametrize("busy", [False, True], ids=["at the start", "after calls"])
def test_promtool_accepts_the_metrics(recorder: Recorder, make_settlement: Make, busy: bool) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.fail("promtool is not on the PATH. Run: apt-get install prometheus (make test does)")
    if busy:
        message = McpTarget(method="tools/call", tool="add", server="tried")
        recorder.settle(make_settlement(call_mcp=message, usage_cached_read_tokens=3, charge_reported_nanousd=4))
        recorder.settle(make_settlement(error_type="internal_error", error_side="server", missing_reason="crash"))
    text, _ = rendered(recorder)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
