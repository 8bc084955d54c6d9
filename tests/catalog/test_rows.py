"""Rules for every row of the catalog, and the documented names with their labels."""

from __future__ import annotations

import re
import typing
from collections import Counter
from pathlib import Path

import pytest
from openai.types.chat.chat_completion import Choice
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_status import ResponseStatus

from mcpmeter import records
from mcpmeter.catalog import ALL, Metric, labels, mcp, money, quality
from mcpmeter.catalog.reference import ALLOWLISTS, reference
from mcpmeter.catalog.spec import NANO
from mcpmeter.cli._reference import all_errors
from mcpmeter.errors import ERROR_TYPES, Side

DOCS = Path(__file__).parents[2] / "docs"

# Written by hand from the contract, not read from the catalog: label names, and after `=` their values.
GUIDE = {
    "mcp_requests_total": ("counter", "endpoint method status"),
    "mcp_request_duration_seconds": ("histogram", "endpoint method"),
    "mcp_tokens_total": (
        "counter",
        "model token_type=prompt,completion team provider source=reported,estimated,partial",
    ),
    "mcp_token_details_total": (
        "counter",
        "model detail=cached_read,cache_write,reasoning,audio team provider source=reported,estimated,partial",
    ),
    "mcp_active_requests": ("gauge", ""),
    "mcp_cost_usd_total": ("counter", "model team provider source=reported,listed"),
    "mcp_errors_total": (
        "counter",
        "error_type=validation_error,auth_error,rate_limited,budget_exceeded,upstream_error,upstream_timeout,"
        "upstream_rate_limited,upstream_unreachable,client_disconnected,internal_error,tool_error,protocol_error "
        "side=client,server,upstream",
    ),
}
GUIDE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

MCP_OPERATION = "mcp_method_name gen_ai_tool_name error_type network_transport=tcp,pipe,inproc mcp_protocol_version"
GEN_AI_CALL = "gen_ai_operation_name gen_ai_provider_name gen_ai_request_model gen_ai_response_model"
# The contract has one set of labels per group; a session has no method, and only token usage has a token type.
STANDARDS = {
    "mcp_server_operation_duration_seconds": f"{MCP_OPERATION} server",
    "mcp_client_operation_duration_seconds": f"{MCP_OPERATION} server",
    "mcp_server_session_duration_seconds": "error_type network_transport=tcp,pipe,inproc mcp_protocol_version server",
    "gen_ai_client_operation_duration_seconds": f"{GEN_AI_CALL} error_type",
    "gen_ai_client_time_to_first_chunk_seconds": GEN_AI_CALL,
    "gen_ai_client_time_per_output_chunk_seconds": GEN_AI_CALL,
    "gen_ai_client_token_usage": f"{GEN_AI_CALL} gen_ai_token_type=input,output",
}
STANDARD_BUCKETS = {
    "mcp_": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
    "gen_ai_client_operation_": tuple(0.01 * 2**power for power in range(17)),
    "gen_ai_client_token_": tuple(4**power for power in range(14)),
    "gen_ai_client_time_": (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
}
OTHERS = {
    "mcp_transport_rejections_total": ("counter", "reason"),
    "mcp_upstream_quota_limit": ("gauge", "provider credential resource"),
    "mcp_upstream_quota_remaining": ("gauge", "provider credential resource"),
    "mcp_upstream_quota_reset_timestamp_seconds": ("gauge", "provider credential resource"),
    "mcp_upstream_quota_exhaustion_seconds": ("gauge", "provider credential resource"),
    "mcp_unpriced_requests_total": ("counter", "provider reason"),
    "mcp_usage_missing_total": ("counter", "provider reason"),
    "mcp_provider_reported_cost_usd_total": ("counter", "provider"),
    "mcp_cost_drift_ratio": ("gauge", "provider"),
    "mcp_budget_spent_usd": ("gauge", "team budget"),
    "mcp_budget_reserved_usd": ("gauge", "team budget"),
    "mcp_budget_limit_usd": ("gauge", "team budget"),
    "mcp_budget_soft_limit_usd": ("gauge", "team budget"),
    "mcp_budget_period_end_timestamp_seconds": ("gauge", "team budget"),
    "mcp_budget_exhaustion_timestamp_seconds": ("gauge", "team budget"),
    "mcp_budget_refusals_total": ("counter", "team budget"),
    "mcp_budget_fallback_priced_total": ("counter", "provider"),
    "mcp_finish_reasons_total": ("counter", "model reason"),
    "mcp_empty_completions_total": ("counter", "model"),
    "mcp_refusals_total": ("counter", "model provider"),
    "mcp_truncated_completions_total": ("counter", "model provider"),
    "mcp_output_tokens_per_second": ("histogram", "model provider"),
    "mcp_ledger_commit_seconds": ("histogram", ""),
    "mcp_ledger_open_rows": ("gauge", ""),
    "mcp_ledger_healthy": ("gauge", ""),
    "mcp_ledger_recovered_total": ("counter", ""),
    "mcp_label_overflow_total": ("counter", "label"),
    "mcpmeter_build_info": ("gauge", "version python_version"),
    "mcpmeter_config_last_reload_successful": ("gauge", ""),
    "mcpmeter_config_last_reload_success_timestamp_seconds": ("gauge", ""),
}

BY_NAME = {row.name: row for row in ALL}
every_row = pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)


def labels_as_promised(row: Metric, promised: str) -> None:
    names = [part.partition("=")[0] for part in promised.split()]
    assert list(row.label_names) == names
    for part, label in zip(promised.split(), row.labels, strict=True):
        _, has_values, values = part.partition("=")
        if has_values:
            assert label.values == tuple(values.split(","))


class TestPromisedNames:
    @pytest.mark.parametrize("name", GUIDE)
    def test_the_guides_family_has_exactly_its_labels(self, name: str) -> None:
        kind, promised = GUIDE[name]
        assert BY_NAME[name].type == kind
        labels_as_promised(BY_NAME[name], promised)

    def test_the_guides_buckets_are_extended(self) -> None:
        assert mcp.REQUEST_DURATION.buckets == GUIDE_SECONDS

    @pytest.mark.parametrize("name", STANDARDS)
    def test_the_standards_family_has_its_labels_and_buckets(self, name: str) -> None:
        row = BY_NAME[name]
        assert row.type == "histogram"
        labels_as_promised(row, STANDARDS[name])
        (buckets,) = (bounds for prefix, bounds in STANDARD_BUCKETS.items() if name.startswith(prefix))
        assert row.buckets == pytest.approx(buckets, rel=1e-12)

    @pytest.mark.parametrize("name", OTHERS)
    def test_the_meters_own_families_have_their_labels(self, name: str) -> None:
        kind, promised = OTHERS[name]
        assert BY_NAME[name].type == kind
        labels_as_promised(BY_NAME[name], promised)


class TestEveryRow:
    def test_series_names_are_unique(self) -> None:
        series = Counter(
            f"{row.name.removesuffix('_total')}{suffix}"
            for row in ALL
            for suffix in {
                "counter": ("_total", "_created"),
                "histogram": ("", "_bucket", "_sum", "_count", "_created"),
                "gauge": ("",),
            }[row.type]
        )
        assert [name for name, times in series.items() if times > 1] == []

    @every_row
    def test_its_name_follows_prometheus(self, row: Metric) -> None:
        assert re.fullmatch(r"(mcp|gen_ai|mcpmeter)(_[a-z0-9]+)+", row.name)
        assert row.name.endswith("_total") == (row.type == "counter")
        assert not re.search(r"_(bucket|sum|count|created|milliseconds|ms|minutes|kilobytes|counter|gauge)$", row.name)
        assert row.type in ("counter", "gauge", "histogram")

    @every_row
    def test_its_unit_is_a_base_unit_and_part_of_its_name(self, row: Metric) -> None:
        assert row.unit in ("", "seconds", "bytes", "ratio", "usd")
        if row.unit:
            assert row.name.removesuffix("_total").endswith(f"_{row.unit}")

    @every_row
    def test_only_time_money_and_quotients_are_scaled(self, row: Metric) -> None:
        is_sum = row.unit == "usd" or (row.type != "gauge" and row.unit == "seconds")
        is_quotient = row.unit == "ratio" or row.name.endswith("_per_second")
        assert row.scale == (NANO if is_sum or is_quotient else 1)

    @every_row
    def test_its_help_is_a_sentence_valid_in_any_format(self, row: Metric) -> None:
        assert row.help.endswith(".")
        assert len(row.help.split()) >= 4
        assert row.help.isprintable()
        assert not set('"\\|') & set(row.help)

    @every_row
    def test_its_labels_are_closed_and_usable(self, row: Metric) -> None:
        assert len(set(row.label_names)) == len(row.labels)
        for label in row.labels:
            assert re.fullmatch(r"[a-z][a-z_]*", label.name)
            assert label.name not in ("le", "quantile", "job", "instance")
            if label.values is None:
                assert label.allowlist in ALLOWLISTS
            else:
                assert label.allowlist == ""
                assert label.values
                assert len(set(label.values)) == len(label.values)
                assert all(value.isascii() and value.isprintable() for value in label.values)

    @every_row
    def test_only_histograms_have_buckets_in_rising_order(self, row: Metric) -> None:
        assert bool(row.buckets) == (row.type == "histogram")
        assert list(row.buckets) == sorted(set(row.buckets))
        assert all(bound > 0 for bound in row.buckets)

    @every_row
    def test_each_bucket_bound_is_exact_as_an_integer(self, row: Metric) -> None:
        assert [round(bound * row.scale) / row.scale for bound in row.buckets] == list(row.buckets)


class TestClosedSetsMatchTheCode:
    def test_sources_reasons_and_transports(self) -> None:
        assert set(typing.get_args(records.TokenSource)) - {"missing"} == set(labels.TOKEN_SOURCE.values)
        assert set(typing.get_args(records.CostSource)) - {"unpriced"} == set(labels.COST_SOURCE.values)
        assert set(typing.get_args(records.UnpricedReason)) - {""} == set(money.UNPRICED_REASON.values or ())
        assert set(typing.get_args(records.Transport)) == set(labels.NETWORK_TRANSPORT.values)

    def test_truncation_reasons_are_finish_reasons(self) -> None:
        assert set(quality.TRUNCATED) < set(quality.REASONS)

    def test_the_official_sdks_finish_reasons_are_included(self) -> None:
        chat = typing.get_args(Choice.model_fields["finish_reason"].annotation)
        statuses = set(typing.get_args(ResponseStatus)) - {"queued", "in_progress"}
        (incomplete, _none) = typing.get_args(IncompleteDetails.model_fields["reason"].annotation)
        assert {*chat, *statuses, *typing.get_args(incomplete)} <= set(quality.REASONS)

    def test_every_error_has_its_labels(self) -> None:
        assert set(typing.get_args(Side)) == set(labels.SIDE.values)
        assert labels.ERROR_TYPE.values == ERROR_TYPES
        for error in all_errors():
            assert error.error_type in labels.ERROR_TYPE.values
            assert error.error_type in labels.OTEL_ERROR_TYPE.values
            assert error.side in labels.SIDE.values
            assert str(error.http_status) in labels.STATUS.values
            assert str(error.jsonrpc_code) in labels.OTEL_ERROR_TYPE.values


def test_the_committed_page_is_up_to_date() -> None:
    assert (DOCS / "metrics.md").read_text() == reference(), "run: make docs"


def test_the_page_lists_every_row_label_value_and_bucket() -> None:
    page = reference()
    rows = dict(re.findall(r"^\| `([a-z_0-9]+)` \| ((?:counter|gauge|histogram) \| .*) \|$", page, re.MULTILINE))
    assert set(rows) == set(BY_NAME)
    for row in ALL:
        kind, names, unit, buckets, help_text = rows[row.name].split(" | ")
        assert (kind, help_text) == (row.type, row.help)
        assert re.findall(r"`(\w+)`", names) == list(row.label_names)
        assert unit == (row.unit or "none")
        assert [float(bound) for bound in buckets.split(", ") if bound] == list(row.buckets)
        for label in row.labels:
            for value in label.values or ():
                assert (f"`{value}`" if value else "empty") in page
