from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.catalog import ALL, OTHER, llm, mcp, money, quality, service
from mcpmeter.metrics.family import Family, Labels
from mcpmeter.metrics.recorder import MAX_CHILDREN_AT_START, Recorder
from mcpmeter.records import McpTarget, Settlement

Make = Callable[..., Settlement]
Counts = Callable[[Recorder, str], Mapping[Labels, int]]

CALL = ("chat", "holysheep", "gpt-4.1", "gpt-4.1")


class TestOneSettlement:
    def test_a_model_call_is_counted_in_every_family(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(usage_cached_read_tokens=5, charge_reported_nanousd=90_000))
        where = ("gpt-4.1", "search", "holysheep")
        assert counts(recorder, "mcp_requests_total") == {("/v1/chat/completions", "POST", "200"): 1}
        assert counts(recorder, "mcp_request_duration_seconds") == {("/v1/chat/completions", "POST"): 1}
        assert counts(recorder, "mcp_errors_total") == {}
        assert counts(recorder, "mcp_tokens_total") == {
            ("gpt-4.1", "prompt", "search", "holysheep", "reported"): 11,
            ("gpt-4.1", "completion", "search", "holysheep", "reported"): 7,
        }
        assert counts(recorder, "mcp_token_details_total") == {
            ("gpt-4.1", "cached_read", "search", "holysheep", "reported"): 5
        }
        assert counts(recorder, "mcp_cost_usd_total") == {(*where, "listed"): 97_500}
        assert counts(recorder, "mcp_provider_reported_cost_usd_total") == {("holysheep",): 90_000}
        assert counts(recorder, "gen_ai_client_operation_duration_seconds") == {(*CALL, ""): 1}
        assert counts(recorder, "gen_ai_client_time_to_first_chunk_seconds") == {CALL: 1}
        assert counts(recorder, "gen_ai_client_time_per_output_chunk_seconds") == {CALL: 1}
        assert counts(recorder, "gen_ai_client_token_usage") == {(*CALL, "input"): 1, (*CALL, "output"): 1}
        assert counts(recorder, "mcp_label_overflow_total") == {}

    def test_time_per_chunk_is_the_mean_of_the_gaps(self, recorder: Recorder, make_settlement: Make) -> None:
        recorder.settle(make_settlement(duration_ns=2_000, time_to_first_chunk_ns=500, chunks=4))
        (cell,) = recorder.families["gen_ai_client_time_per_output_chunk_seconds"].histograms.values()
        assert cell.sum == 500

    def test_chunk_times_need_a_stream_and_gaps_two_chunks(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(chunks=1))
        recorder.settle(make_settlement(chunks=0))
        assert counts(recorder, "gen_ai_client_time_to_first_chunk_seconds") == {CALL: 1}
        assert counts(recorder, "gen_ai_client_time_per_output_chunk_seconds") == {}

    def test_a_call_in_an_mcp_message_is_not_a_request_itself(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(call_parent_id="call_0", error_type="upstream_error", error_side="upstream"))
        for name in ("mcp_requests_total", "mcp_request_duration_seconds", "mcp_errors_total"):
            assert counts(recorder, name) == {}
        assert sum(counts(recorder, "mcp_tokens_total").values()) == 18
        assert sum(counts(recorder, "gen_ai_client_operation_duration_seconds").values()) == 1

    @pytest.mark.parametrize(("role", "row"), [("server", "mcp_server"), ("client", "mcp_client")])
    def test_an_mcp_message_is_counted_by_its_role(
        self, recorder: Recorder, make_settlement: Make, counts: Counts, role: Any, row: str
    ) -> None:
        target = McpTarget(method="tools/call", tool="add", protocol_version="2026-07-28", server="tried", role=role)
        recorder.settle(make_settlement(call_llm=None, call_mcp=target, usage=None, charge=None, chunks=0))
        assert counts(recorder, f"{row}_operation_duration_seconds") == {
            ("tools/call", "add", "", "tcp", "2026-07-28", "tried"): 1
        }
        others = {"mcp_server", "mcp_client"} - {row}
        assert [counts(recorder, f"{other}_operation_duration_seconds") for other in others] == [{}]

    def test_an_error_is_counted_by_type_and_side(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(error_type="rate_limited", error_side="client", otel_error_type="rate_limited"))
        assert counts(recorder, "mcp_errors_total") == {("rate_limited", "client"): 1}
        assert counts(recorder, "gen_ai_client_operation_duration_seconds") == {(*CALL, "rate_limited"): 1}

    def test_missing_usage_counts_its_reason_and_no_tokens(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(usage_source="missing", missing_reason="no_usage"))
        assert counts(recorder, "mcp_usage_missing_total") == {("holysheep", "no_usage"): 1}
        assert counts(recorder, "mcp_tokens_total") == {}
        assert counts(recorder, "gen_ai_client_token_usage") == {}

    @pytest.mark.parametrize(("reported", "counted"), [("", "unknown_model"), ("usage_missing", "usage_missing")])
    def test_an_unpriced_call_is_counted_by_its_reason(
        self, recorder: Recorder, make_settlement: Make, counts: Counts, reported: str, counted: str
    ) -> None:
        recorder.settle(make_settlement(charge_source="unpriced", charge_nanousd=0, charge_unpriced_reason=reported))
        assert counts(recorder, "mcp_unpriced_requests_total") == {("holysheep", counted): 1}
        assert list(recorder.families["mcp_cost_usd_total"].cells) == []

    def test_a_recovered_call_has_tokens_but_no_duration(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(outcome="recovered", duration_ns=0, status="500"))
        assert sum(counts(recorder, "mcp_requests_total").values()) == 1
        assert sum(counts(recorder, "mcp_tokens_total").values()) == 18
        histograms = [row.name for row in ALL if row.type == "histogram"]
        assert [name for name in histograms if counts(recorder, name)] == []


class TestQuality:
    @pytest.mark.parametrize("reason", ["stop", "STOP"])
    def test_a_finish_reason_is_counted_as_reported(
        self, recorder: Recorder, make_settlement: Make, counts: Counts, reason: str
    ) -> None:
        recorder.settle(make_settlement(finish_reason=reason))
        assert counts(recorder, "mcp_finish_reasons_total") == {("gpt-4.1", reason): 1}
        assert counts(recorder, "mcp_truncated_completions_total") == {}

    @pytest.mark.parametrize("reason", sorted(quality.TRUNCATED))
    def test_a_length_limit_is_a_truncation_in_every_dialect(
        self, recorder: Recorder, make_settlement: Make, counts: Counts, reason: str
    ) -> None:
        recorder.settle(make_settlement(finish_reason=reason))
        assert counts(recorder, "mcp_finish_reasons_total") == {("gpt-4.1", reason): 1}
        assert counts(recorder, "mcp_truncated_completions_total") == {("gpt-4.1", "holysheep"): 1}

    def test_an_unknown_finish_reason_is_an_overflow(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(finish_reason="bored"))
        assert counts(recorder, "mcp_finish_reasons_total") == {("gpt-4.1", OTHER): 1}
        assert counts(recorder, "mcp_label_overflow_total") == {("reason",): 1}

    def test_without_a_finish_reason_none_is_counted(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement())
        for row in (quality.FINISH_REASONS, quality.TRUNCATIONS, quality.EMPTY, quality.REFUSALS):
            assert counts(recorder, row.name) == {}

    def test_empty_responses_and_refusals_are_counted(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(is_empty=True))
        recorder.settle(make_settlement(is_refusal=True, call_parent_id="call_0"))
        recorder.settle(make_settlement(is_refusal=True, error_type="upstream_error", error_side="upstream"))
        assert counts(recorder, "mcp_empty_completions_total") == {("gpt-4.1",): 1}
        assert counts(recorder, "mcp_refusals_total") == {("gpt-4.1", "holysheep"): 2}

    @pytest.mark.parametrize(
        ("tokens", "duration_ns", "rate"),
        [(7, 2_000_000_000, 3_500_000_000), (1, 3_000_000_000, 333_333_333), (300, 1_000_000_000, 300_000_000_000)],
    )
    def test_tokens_per_second_are_those_of_the_whole_call(
        self, recorder: Recorder, make_settlement: Make, tokens: int, duration_ns: int, rate: int
    ) -> None:
        recorder.settle(make_settlement(usage_completion_tokens=tokens, duration_ns=duration_ns))
        (cell,) = recorder.families["mcp_output_tokens_per_second"].histograms.values()
        assert cell.sum == rate

    @pytest.mark.parametrize(
        "changes",
        [
            {"usage_source": "estimated"},
            {"usage_source": "partial"},
            {"usage_source": "missing"},
            {"usage_completion_tokens": 0},
            {"duration_ns": 0},
            {"outcome": "partial"},
            {"outcome": "error"},
            {"outcome": "recovered"},
            {"usage": None},
        ],
    )
    def test_an_estimate_or_a_broken_response_has_no_rate(
        self, recorder: Recorder, make_settlement: Make, counts: Counts, changes: dict[str, Any]
    ) -> None:
        recorder.settle(make_settlement(**changes))
        assert counts(recorder, "mcp_output_tokens_per_second") == {}


class TestCostDrift:
    def settle(self, recorder: Recorder, make_settlement: Make, reported: int | None, listed: int | None) -> None:
        recorder.settle(make_settlement(charge_reported_nanousd=reported, charge_listed_nanousd=listed))

    def test_it_is_reported_by_listed_cost_over_all_calls(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        self.settle(recorder, make_settlement, 300, 100)
        assert counts(recorder, "mcp_cost_drift_ratio") == {("holysheep",): 3_000_000_000}
        self.settle(recorder, make_settlement, 0, 200)
        assert counts(recorder, "mcp_cost_drift_ratio") == {("holysheep",): 1_000_000_000}

    @pytest.mark.parametrize(("reported", "listed"), [(None, 100), (100, None), (None, None), (100, 0)])
    def test_it_is_absent_until_a_call_has_both(
        self, recorder: Recorder, make_settlement: Make, reported: int | None, listed: int | None
    ) -> None:
        self.settle(recorder, make_settlement, reported, listed)
        assert recorder.families["mcp_cost_drift_ratio"].cells == {}

    def test_reported_cost_of_a_free_model_counts_later(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        self.settle(recorder, make_settlement, 100, 0)
        self.settle(recorder, make_settlement, 100, 100)
        assert counts(recorder, "mcp_cost_drift_ratio") == {("holysheep",): 2_000_000_000}

    def test_calls_with_estimated_tokens_do_not_count(self, recorder: Recorder, make_settlement: Make) -> None:
        guessed = make_settlement(usage_source="partial", charge_reported_nanousd=300, charge_listed_nanousd=100)
        recorder.settle(guessed)
        assert recorder.families["mcp_cost_drift_ratio"].cells == {}

    @given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), min_size=1, max_size=20))
    def test_each_provider_has_its_own_exact_ratio(
        self, make_recorder: Callable[[], Recorder], make_settlement: Make, costs: list[tuple[int, int]]
    ) -> None:
        recorder = make_recorder()
        for reported, listed in costs:
            self.settle(recorder, make_settlement, reported, listed)
        recorder.settle(
            make_settlement(llm_provider="openai", charge_reported_nanousd=1, charge_listed_nanousd=1),
        )
        cells = {labels[0]: cell.value for labels, cell in recorder.families["mcp_cost_drift_ratio"].cells.items()}
        assert cells.pop("openai") == 1_000_000_000
        reported, listed = (sum(side) for side in zip(*costs, strict=True))
        assert cells == ({"holysheep": reported * 10**9 // listed} if listed else {})


class TestModels:
    def test_a_dated_name_is_shown_as_the_registered_model(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.known_as = lambda provider, model: "gpt-4.1" if model.startswith("gpt-4.1-") else None
        recorder.settle(make_settlement(llm_model="gpt-4.1-2026-01-01", response_model="gpt-4.1-2026-01-01"))
        assert {labels[0] for labels in counts(recorder, "mcp_tokens_total")} == {"gpt-4.1"}
        assert counts(recorder, "mcp_label_overflow_total") == {}

    def test_an_alias_of_an_unregistered_model_is_other(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.known_as = lambda provider, model: "also-not-announced"
        recorder.settle(make_settlement(llm_model="unknown"))
        assert {labels[0] for labels in counts(recorder, "mcp_tokens_total")} == {OTHER}

    def test_another_response_model_has_its_own_label(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(response_model="deepseek-v3.2"))
        (labels,) = counts(recorder, "gen_ai_client_operation_duration_seconds")
        assert labels[2:4] == ("gpt-4.1", "deepseek-v3.2")
        assert {labels[0] for labels in counts(recorder, "mcp_tokens_total")} == {"gpt-4.1"}

    def test_opentelemetrys_provider_name_is_in_gen_ai_only(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.label_allowlist.register("provider", ["gcp.gemini"])
        recorder.settle(make_settlement(llm_otel_provider="gcp.gemini"))
        assert {labels[1] for labels in counts(recorder, "gen_ai_client_token_usage")} == {"gcp.gemini"}
        assert {labels[3] for labels in counts(recorder, "mcp_tokens_total")} == {"holysheep"}


HOSTILE = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Zl", "Zp"]), max_size=5),
    st.sampled_from(
        ["\ud800", "a\x00b", 'x"} 1\nmcp_cost_usd_total{model="x', "\\", "\n", "\r\n", "# EOF\n", "", OTHER, " gpt-4.1"]
    ),
    st.integers(1, 9).map(lambda n: str(n) * 1_000_000),
)
# fmt: off
FIELDS = dict.fromkeys(
    (
        "call_endpoint", "call_method", "call_team", "call_trace_id", "call_key_id", "llm_provider", "llm_model",
        "llm_operation", "llm_otel_provider", "status", "error_type", "error_side", "otel_error_type", "error_id",
        "response_model", "finish_reason", "missing_reason", "upstream_request_id",
    ),
    HOSTILE,
)
# fmt: on
MCP_FIELDS = dict.fromkeys(("tool", "transport", "protocol_version", "server"), HOSTILE)


def series_of(recorder: Recorder) -> dict[str, set[Labels]]:
    return {f.metric.name: {*(v[0] for v in f.values), *(h[0] for h in f.histograms)} for f in recorder.snapshot()}


def allowed(recorder: Recorder, series: dict[str, set[Labels]]) -> bool:
    rows = {row.name: row for row in ALL}
    return all(
        value == OTHER or value in (label.values or recorder.label_allowlist.of(label.allowlist))
        for name, children in series.items()
        for labels in children
        for label, value in zip(rows[name].labels, labels, strict=True)
    )


class TestClosedSets:
    @settings(max_examples=60, deadline=None)
    @given(
        st.fixed_dictionaries({}, optional=FIELDS),
        st.none() | st.fixed_dictionaries({"method": HOSTILE}, optional=MCP_FIELDS),
        HOSTILE,
        HOSTILE,
    )
    def test_no_text_of_a_caller_becomes_a_label_value(
        self,
        make_recorder: Callable[[], Recorder],
        make_settlement: Make,
        fields: dict[str, Any],
        mcp_fields: dict[str, Any] | None,
        source: str,
        reason: str,
    ) -> None:
        recorder = make_recorder()
        target = McpTarget(**mcp_fields) if mcp_fields else None
        sources = {"usage_source": source, "charge_source": source, "charge_unpriced_reason": reason}
        recorder.settle(make_settlement(call_mcp=target, **fields))
        recorder.settle(make_settlement(call_mcp=target, **fields, **sources))
        recorder.settle(make_settlement(charge_source="unpriced", charge_unpriced_reason=reason))
        assert allowed(recorder, series_of(recorder))

    def test_ten_thousand_unknown_names_are_one_series(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(llm_model="first-unknown", call_team="first-unknown"))
        before = series_of(recorder)
        overflow = dict(counts(recorder, "mcp_label_overflow_total"))
        for number in range(10_000):
            recorder.settle(make_settlement(llm_model=f"model-{number}", call_team=f"team-{number}"))
        assert series_of(recorder) == before
        after = counts(recorder, "mcp_label_overflow_total")
        assert after == {labels: 10_001 * value for labels, value in overflow.items()}
        assert set(after) == {("model",), ("team",)}

    @pytest.mark.parametrize("row", [row for row in ALL if row.labels], ids=lambda row: row.name)
    def test_add_set_and_observe_clamp_labels(self, recorder: Recorder, row: Any) -> None:
        unknown = dict.fromkeys(row.label_names, "\ud800strange")
        {"counter": recorder.add, "gauge": recorder.set, "histogram": recorder.observe}[row.type](row, 1, **unknown)
        assert (OTHER,) * len(row.labels) in series_of(recorder)[row.name]
        overflow = {
            labels[0]: cell.value for labels, cell in recorder.families["mcp_label_overflow_total"].cells.items()
        }
        assert {name for name, value in overflow.items() if value} >= set(row.label_names) - {"label"}

    def test_a_value_registered_later_is_shown_from_then_on(
        self, recorder: Recorder, make_settlement: Make, counts: Counts
    ) -> None:
        recorder.settle(make_settlement(call_team="newcomers"))
        recorder.label_allowlist.register("team", ["newcomers"])
        recorder.settle(make_settlement(call_team="newcomers"))
        assert {labels[1] for labels in counts(recorder, "mcp_cost_usd_total")} == {OTHER, "newcomers"}


class TestChildrenAtZero:
    def test_a_row_without_labels_exists_at_zero(self) -> None:
        series = series_of(Recorder())
        for row in ALL:
            assert (() in series[row.name]) == (not row.labels), row.name

    def test_every_label_has_an_overflow_counter_at_zero(self) -> None:
        cells = Recorder().families["mcp_label_overflow_total"].cells
        assert {labels[0]: cell.value for labels, cell in cells.items()} == {
            label.name: 0 for row in ALL for label in row.labels
        }

    def test_registered_children_are_the_product_of_their_sets(self, recorder: Recorder) -> None:
        recorder.register_children(
            money.COST, model=["gpt-4.1"], team=["search", "support"], provider=["openai"], source=["listed"]
        )
        assert {labels: cell.value for labels, cell in recorder.families["mcp_cost_usd_total"].cells.items()} == {
            ("gpt-4.1", "search", "openai", "listed"): 0,
            ("gpt-4.1", "support", "openai", "listed"): 0,
        }

    def test_a_label_that_is_left_out_takes_its_fixed_values(self, recorder: Recorder) -> None:
        recorder.register_children(money.COST, model=["gpt-4.1"], team=["search"], provider=["openai"])
        assert {labels[3] for labels in recorder.families["mcp_cost_usd_total"].cells} == {"reported", "listed"}

    def test_registering_again_keeps_the_counts(self, recorder: Recorder, counts: Counts) -> None:
        recorder.add(mcp.TRANSPORT_REJECTIONS, 3, reason="bad_host")
        recorder.observe(service.LEDGER_COMMIT, 5)
        recorder.register_children(mcp.TRANSPORT_REJECTIONS, reason=["bad_host", "bad_origin"])
        recorder.register_children(service.LEDGER_COMMIT)
        assert counts(recorder, "mcp_transport_rejections_total") == {("bad_host",): 3}
        assert counts(recorder, "mcp_ledger_commit_seconds") == {(): 1}

    def test_a_family_that_would_start_too_large_starts_empty(self, recorder: Recorder) -> None:
        many = [str(n) for n in range(MAX_CHILDREN_AT_START + 1)]
        recorder.register_children(mcp.TRANSPORT_REJECTIONS, reason=many)
        assert recorder.families["mcp_transport_rejections_total"].cells == {}


class TestNumbers:
    @given(st.lists(st.integers(0, 10**15), max_size=30))
    def test_money_is_kept_in_whole_nano_dollars(
        self, make_recorder: Callable[[], Recorder], make_settlement: Make, costs: list[int]
    ) -> None:
        recorder = make_recorder()
        for nanousd in costs:
            recorder.settle(make_settlement(charge_nanousd=nanousd, charge_reported_nanousd=nanousd))
        for name in ("mcp_cost_usd_total", "mcp_provider_reported_cost_usd_total"):
            kept = [cell.value for cell in recorder.families[name].cells.values()]
            assert sum(kept) == sum(costs)
            assert all(type(value) is int for value in kept)

    @given(st.lists(st.integers(0, 4_000_000_000_000), max_size=60))
    def test_a_histogram_agrees_with_a_plain_count(
        self, make_recorder: Callable[[], Recorder], durations_ns: list[int]
    ) -> None:
        recorder = make_recorder()
        for duration_ns in durations_ns:
            recorder.observe(mcp.REQUEST_DURATION, duration_ns, endpoint="/mcp", method="POST")
        snapshot = next(f for f in recorder.snapshot() if f.metric is mcp.REQUEST_DURATION)
        below = 0
        for _, buckets, total, _ in snapshot.histograms:
            assert (sum(buckets), total) == (len(durations_ns), sum(durations_ns))
            for bound, count in zip(mcp.REQUEST_DURATION.buckets, buckets, strict=False):
                below += count
                assert below == sum(duration_ns <= round(bound * 1e9) for duration_ns in durations_ns)

    @pytest.mark.parametrize("row", [row for row in ALL if row.type == "histogram"], ids=lambda row: row.name)
    def test_a_value_on_a_bound_is_in_its_bucket_and_one_more_is_not(self, row: Any) -> None:
        cell = Family(row).histogram(**dict.fromkeys(row.label_names, "x"))
        for index, bound in enumerate(cell.bounds):
            cell.observe(bound)
            assert cell.counts[index] == 1 + (index > 0)
            cell.observe(bound + 1)
            assert cell.counts[index + 1] == 1

    def test_active_requests_go_up_and_down(self, recorder: Recorder, counts: Counts) -> None:
        recorder.begin_request()
        recorder.begin_request()
        recorder.end_request()
        assert counts(recorder, "mcp_active_requests") == {(): 1}

    def test_the_last_trace_of_each_bucket_is_its_exemplar(self, recorder: Recorder, make_settlement: Make) -> None:
        for trace_id, duration_ns in (("a" * 32, 2), ("b" * 32, 1), ("c" * 32, 10**12), ("", 3)):
            recorder.settle(make_settlement(call_trace_id=trace_id, duration_ns=duration_ns))
        (cell,) = recorder.families["mcp_request_duration_seconds"].histograms.values()
        assert {index: kept[:2] for index, kept in cell.exemplars.items()} == {0: ("b" * 32, 1), 15: ("c" * 32, 10**12)}


def test_two_recorders_share_nothing(
    make_recorder: Callable[[], Recorder], make_settlement: Make, counts: Counts
) -> None:
    one, other = make_recorder(), make_recorder()
    one.label_allowlist.register("team", ["only-here"])
    one.settle(make_settlement(call_team="only-here"))
    one.begin_request()
    assert all(counts(other, row.name) == {} for row in ALL)
    assert "only-here" not in other.label_allowlist.of("team")


def test_a_snapshot_does_not_change_later(recorder: Recorder, make_settlement: Make) -> None:
    recorder.settle(make_settlement(call_trace_id="a" * 32))
    before = recorder.snapshot()
    copied = repr(before)
    recorder.settle(make_settlement(call_trace_id="b" * 32, call_team="support"))
    assert repr(before) == copied
    assert repr(recorder.snapshot()) != copied


def test_a_snapshot_survives_children_added_by_gc_callbacks(recorder: Recorder, make_settlement: Make) -> None:
    teams = [f"team-{number}" for number in range(1_000)]
    recorder.label_allowlist.register("team", teams)
    recorder.register_children(money.COST, model=["gpt-4.1"], team=teams[:500], provider=["openai"], source=["listed"])
    strangers = iter(teams[500:])
    runs: list[str] = []

    def settle_one(phase: str, info: object) -> None:
        runs.append(phase)
        recorder.settle(make_settlement(call_team=next(strangers, "search")))

    threshold = gc.get_threshold()
    gc.callbacks.append(settle_one)
    gc.set_threshold(1)
    try:
        recorder.snapshot()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(settle_one)
    assert runs


def test_a_recorder_can_have_a_subset_of_the_rows(make_settlement: Make, counts: Counts) -> None:
    rows = (*mcp.ROWS, service.LABEL_OVERFLOW)
    recorder = Recorder(rows=rows)
    recorder.settle(make_settlement(call_llm=None, usage=None, charge=None))
    assert {f.metric for f in recorder.snapshot()} == set(rows)
    assert counts(recorder, "mcp_requests_total") == {(OTHER, "POST", "200"): 1}
    assert llm.TOKENS.name not in recorder.families
