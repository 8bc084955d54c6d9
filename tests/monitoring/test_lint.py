"""The linter finds and explains the defects of the published guide, and none in the generated files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from mcpmeter.catalog import ALL
from mcpmeter.cli._group import run as run_command
from mcpmeter.errors import SetupError
from mcpmeter.monitoring import MonitoringOptions
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.lint import Known, LintIssue, lint, read
from mcpmeter.monitoring.lint.expressions import fill_variables
from mcpmeter.monitoring.lint.live import known_of, selectors, unmatched

FIXTURES = Path(__file__).parent / "fixtures"
DEPLOY = Path(__file__).parents[2] / "deploy"
RULES, DASHBOARD = FIXTURES / "guide_rules.yml", FIXTURES / "guide_dashboard.json"


def found_in(*paths: Path, known: Known | None = None) -> list[LintIssue]:
    return lint({str(path): path.read_text() for path in paths}, known or Known.from_catalog())


def found(expr: str, known: Known | None = None) -> dict[str, LintIssue]:
    """Issues of one alert expression, by kind."""
    rules = yaml.safe_dump({"groups": [{"name": "g", "rules": [{"alert": "A", "expr": expr}]}]})
    return {issue.kind: issue for issue in lint({"rules.yml": rules}, known or Known.from_catalog())}


@pytest.fixture(scope="module")
def by_alert() -> dict[tuple[str, str], LintIssue]:
    return {(issue.place.removeprefix("alert "), issue.kind): issue for issue in found_in(RULES)}


class TestGuide:
    @pytest.mark.parametrize(
        ("alert", "kind", "message"),
        [
            ("MCPHighErrorRate", "never-matches", "left side has error_type, side; only the right side has endpoint"),
            ("MCPHighErrorRate", "no-volume-floor", "without a minimum volume"),
            ("MCPTokenBudgetWarning", "unknown-metric", "'mcp_cost_usd'"),
            ("MCPTokenBudgetWarning", "lifetime-counter", "fires above 80,000 USD, and a restart resets it"),
            ("MCPCostSpike", "unknown-metric", "'mcp_cost_usd'"),
            ("MCPCostSpike", "mean-as-baseline", "mean over 24 h"),
            ("MCPLatencyDegraded", "quantile-not-aggregated", "without sum by (le)"),
            ("HolySheepRelayDown", "no-volume-floor", "a single event fires this"),
            ("HolySheepRelayDown", "narrow-error-type", "excludes upstream_timeout, upstream_unreachable"),
        ],
    )
    def test_each_known_defect_of_its_rules_is_found(self, by_alert, alert: str, kind: str, message: str) -> None:
        assert message in by_alert[alert, kind].message

    def test_promtool_accepts_the_same_rules(self, tool) -> None:
        assert "SUCCESS" in tool("promtool", "check", "rules", RULES)

    def test_the_correct_name_is_suggested(self, by_alert) -> None:
        assert by_alert["MCPCostSpike", "unknown-metric"].hint == "Did you mean 'mcp_cost_usd_total'?"

    def test_a_threshold_at_the_top_bucket_is_never_exceeded(self) -> None:
        known = known_of(str(FIXTURES / "guide_metrics.txt"))
        kinds = {issue.kind: issue for issue in found_in(RULES, known=known) if "Latency" in issue.place}
        assert "exceeds its top bucket, 10: > 10 is never true" in kinds["beyond-top-bucket"].message

    def test_each_known_defect_of_its_dashboard_is_found(self) -> None:
        issues = found_in(DASHBOARD)
        kinds = {issue.kind for issue in issues}
        assert kinds >= {"wrapped-dashboard", "gone-panel", "no-uid", "no-schemaVersion", "no-datasource"}
        assert {issue.place for issue in issues if issue.kind == "unknown-metric"} == {"panel Cost"}
        assert {issue.place for issue in issues if issue.kind == "counter-without-rate"} == {"panel Errors"}
        assert {issue.place for issue in issues if issue.kind == "quantile-not-aggregated"} == {"panel p95"}

    def test_the_generated_recording_rules_provide_its_cost_metric(self) -> None:
        ours = sorted((DEPLOY / "prometheus" / "rules").glob("mcpmeter-guide.yml"))
        assert "unknown-metric" not in {issue.kind for issue in found_in(RULES, *ours)}


def test_the_generated_files_have_no_issue() -> None:
    paths = [*DEPLOY.rglob("rules/*.yml"), *DEPLOY.rglob("dashboards/*.json"), *DEPLOY.rglob("kubernetes/*.y*ml")]
    with_expressions = [path for path in paths if read(str(path), path.read_text())[0]]
    assert len(with_expressions) >= 15
    assert found_in(*with_expressions) == []


class TestSelectors:
    @pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)
    def test_every_metric_of_the_catalog_is_known(self, row) -> None:
        name = f"{row.name}_count" if row.type == "histogram" else row.name
        assert "unknown-metric" not in found(f"sum({name}) > 1")

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("mcp_cost_usd", "mcp_cost_usd_total"),
            ("mcp_request_total", "mcp_requests_total"),
            ("mcp_request_duration_seconds", "mcp_request_duration_seconds_bucket"),
            ("mcp_active_requests_total", "mcp_active_requests"),
            ("job:mcp_failures:ratio_rate7m", "job:mcp_failures:ratio_rate5m"),
        ],
    )
    def test_an_unknown_metric_suggests_the_nearest_name(self, wrong: str, right: str) -> None:
        assert found(f"{wrong} > 1")["unknown-metric"].hint == f"Did you mean '{right}'?"

    @pytest.mark.parametrize("expr", ["up == 0", "node_load1 > 4", "rate(http_requests_total[5m]) > 1 and up == 1"])
    def test_metrics_of_other_programs_are_not_checked(self, expr: str) -> None:
        assert found(expr) == {}

    def test_an_unknown_label_lists_the_labels_of_the_metric(self) -> None:
        issue = found('increase(mcp_errors_total{status="500"}[5m]) > 5')["unknown-label"]
        assert (issue.level, issue.hint) == ("error", "Its labels: error_type, side.")
        assert "unknown-label" in found("sum by (model) (increase(mcp_errors_total[5m])) > 5")

    @pytest.mark.parametrize("matcher", ['status!="500"', 'status=""', 'job="x"', 'region=~"eu.*"', 'status!~"5.."'])
    def test_a_matcher_of_an_absent_label_is_accepted(self, matcher: str) -> None:
        assert found(f"increase(mcp_errors_total{{{matcher}}}[5m]) > 5") == {}

    @pytest.mark.parametrize("matcher", ['side="caller"', 'side=~"us|them"', 'error_type="timeout"'])
    def test_a_value_outside_a_closed_set_lists_the_set(self, matcher: str) -> None:
        issue = found(f"increase(mcp_errors_total{{{matcher}}}[5m]) > 5")["unknown-value"]
        assert issue.hint.startswith("Its values: ")

    @pytest.mark.parametrize("matcher", ['side=~"server|upstream"', 'side="other"', 'side!="x"', 'error_type=~"up.*"'])
    def test_a_value_of_the_set_is_accepted(self, matcher: str) -> None:
        assert found(f"increase(mcp_errors_total{{{matcher}}}[5m]) > 5") == {}


class TestOperations:
    @pytest.mark.parametrize(
        "expr",
        [
            "sum by (side) (rate(mcp_errors_total[5m])) / sum(rate(mcp_requests_total[5m])) > 1 and vector(1)",
            "sum by (side) (rate(mcp_errors_total[5m])) and on (model) sum by (model) (rate(mcp_tokens_total[5m]))",
            "sum by (model) (rate(mcp_tokens_total[5m])) * on (model) sum by (provider) (rate(mcp_tokens_total[5m]))",
            "mcp_upstream_up == on (provider) sum(mcp_active_requests)",
            "rate(mcp_errors_total[5m]) / ignoring (side) rate(mcp_requests_total[5m])",
            "sum by (job) (mcp_active_requests) unless sum(mcp_ledger_open_rows)",
        ],
    )
    def test_vectors_that_never_match_are_found(self, expr: str) -> None:
        assert found(expr)["never-matches"].level == "error"

    @pytest.mark.parametrize(
        "expr",
        [
            "sum(rate(mcp_errors_total[5m])) / sum(rate(mcp_requests_total[5m])) and sum(mcp_active_requests) > 1",
            "sum by (job) (rate(mcp_errors_total[5m])) / on (job) sum by (job) (rate(mcp_requests_total[5m]))",
            "sum by (cluster, job) (mcp_active_requests) - sum by (job, region) (mcp_ledger_open_rows)",
            "mcp_ledger_open_rows - mcp_active_requests",
            "rate(mcp_tokens_total[5m]) * on (job) group_left (version) mcpmeter_build_info",
            "sum by (model, side) (rate(mcp_tokens_total[5m])) or sum(mcp_active_requests)",
            'label_replace(mcp_upstream_up, "x", "$1", "provider", "(.*)") * mcp_upstream_circuit_open',
            "scalar(sum(mcp_active_requests)) < mcp_ledger_open_rows",
        ],
    )
    def test_vectors_that_may_match_are_accepted(self, expr: str) -> None:
        assert "never-matches" not in found(expr)

    def test_labels_are_followed_through_recording_rules(self) -> None:
        assert "never-matches" in found("job_model:mcp_cost_usd:rate5m / job:mcp_requests:rate5m")


class TestCounters:
    @pytest.mark.parametrize(
        "expr", ["mcp_errors_total > 5", "sum(mcp_requests_total) > 9", "mcp_ledger_commit_seconds_count > 1"]
    )
    def test_a_counter_compared_without_rate_is_found(self, expr: str) -> None:
        assert found(expr)["counter-without-rate"].level == "error"

    @pytest.mark.parametrize(
        "expr", ["absent(mcp_errors_total)", "count(mcp_errors_total) < 1", "resets(mcp_errors_total[1h])"]
    )
    def test_a_counter_may_be_counted_or_tested_for_absence(self, expr: str) -> None:
        assert found(expr) == {}

    @pytest.mark.parametrize("name", ["rate", "increase", "irate"])
    def test_the_rate_of_a_gauge_is_found(self, name: str) -> None:
        assert found(f"{name}(mcp_active_requests[5m]) > 1")["rate-of-gauge"].level == "error"

    def test_a_slope_of_a_counter_is_found(self) -> None:
        assert found("deriv(mcp_cost_usd_total[1h]) > 1")["gauge-function-of-counter"].level == "warning"

    @pytest.mark.parametrize(
        ("expr", "amount"),
        [
            ("mcp_cost_usd_total > 800", "800"),
            ("sum(mcp_cost_usd_total) / 1000 > 80", "80,000"),
            ("80 < mcp_cost_usd * 10", "8"),
        ],
    )
    def test_a_lifetime_total_in_dollars_names_the_amount_that_fires(self, expr: str, amount: str) -> None:
        assert f"fires above {amount} USD" in found(expr)["lifetime-counter"].message

    def test_budget_gauges_are_accepted(self) -> None:
        assert found("max by (team) (mcp_budget_spent_usd) > max by (team) (mcp_budget_limit_usd)") == {}


class TestQuantiles:
    def test_a_quantile_without_buckets_is_found(self) -> None:
        for buckets in (
            "sum(rate(mcp_request_duration_seconds_bucket[5m]))",
            "rate(mcp_request_duration_seconds_sum[5m])",
        ):
            assert "quantile-without-le" in found(f"histogram_quantile(0.9, {buckets}) > 1")

    def test_a_threshold_beyond_the_top_bucket_is_found(self) -> None:
        expr = "histogram_quantile(0.9, sum by (le) (rate(mcp_request_duration_seconds_bucket[5m]))) > {}"
        assert "top bucket, 600" in found(expr.format(600))["beyond-top-bucket"].message
        assert found(expr.format(599)) == {}


KEYS = [
    "groups",
    "rules",
    "alert",
    "expr",
    "panels",
    "targets",
    "dashboard",
    "title",
    "kind",
    "spec",
    "data",
    "type",
    "rows",
]
DOCUMENTS = st.recursive(
    st.none() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
)


def test_every_runbook_query_has_no_issue() -> None:
    queries = [check.query for alert in alerts(MonitoringOptions()) for check in alert.runbook.check]
    rules = [{"record": f"r{number}", "expr": query} for number, query in enumerate(queries)]
    text = yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]})
    assert len(queries) > 40
    assert lint({"runbooks": text}, Known.from_catalog()) == []


class TestFiles:
    def test_prometheus_rules_and_config_maps_are_read(self) -> None:
        spec = {"groups": [{"name": "g", "rules": [{"alert": "A", "expr": "mcp_gone > 1"}]}]}
        panel = {"title": "P", "type": "stat", "datasource": {"uid": "x"}, "targets": [{"expr": "mcp_vanished"}]}
        dashboard = {"title": "D", "uid": "d", "schemaVersion": 42, "panels": [{"type": "row", "panels": [panel]}]}
        documents = [
            {"kind": "PrometheusRule", "spec": spec},
            {"kind": "ConfigMap", "data": {"d.json": json.dumps(dashboard), "note.txt": "no dashboard"}},
        ]
        issues = lint({"all.yaml": yaml.safe_dump_all(documents)}, Known.from_catalog())
        assert [(issue.file, issue.place) for issue in issues] == [
            ("all.yaml", "alert A"),
            ("all.yaml#d.json", "panel P"),
        ]

    @pytest.mark.parametrize("content", ["{", "a: [", "\t- x", "{}", "[]", "", "groups: []", "text", "groups: {a: 1}"])
    def test_a_file_without_expressions_is_reported(self, content: str) -> None:
        (issue,) = lint({"x": content}, Known.from_catalog())
        assert issue.kind in {"unreadable", "nothing-found"}

    def test_a_syntax_error_is_reported(self) -> None:
        assert found("sum(")["syntax"].level == "error"

    @pytest.mark.parametrize(
        ("query", "promql"),
        [
            ("rate(a[$__rate_interval])", "rate(a[5m])"),
            ("rate(a[${window}])", "rate(a[5m])"),
            ('a{model=~"$model"} > $limit', 'a{model=~"$model"} > 1'),
            ("increase(a[$__range:1m]) * ${factor:raw}", "increase(a[5m]) * 1"),
        ],
    )
    def test_dashboard_variables_are_replaced(self, query: str, promql: str) -> None:
        assert fill_variables(query) == promql

    @given(DOCUMENTS)
    @budget(max_examples=60, deadline=None)
    def test_any_document_is_accepted(self, document: object) -> None:
        in_json = json.dumps({"panels": document, "groups": document})
        for name, content in (("x.json", in_json), ("x.yaml", yaml.safe_dump(document))):
            assert all(issue.file == name for issue in lint({name: content}, Known.from_catalog()))

    @given(st.text(alphabet='mcp_errors_total{}[]()",=~!5mh /*+->sumrateby on:$', max_size=60))
    @budget(max_examples=100, deadline=None)
    def test_any_expression_is_accepted(self, expr: str) -> None:
        found(expr)
        selectors(expr)


class TestScrape:
    def test_an_issue_names_the_scrape_it_is_based_on(self, tmp_path: Path) -> None:
        page = tmp_path / "metrics"
        page.write_text('# TYPE mcp_errors_total counter\nmcp_errors_total{side="server"} 1\n')
        known = known_of(str(page))
        assert str(page) in found("mcp_active_requests > 1", known)["unknown-metric"].message
        assert "unknown-value" in found('rate(mcp_errors_total{side="client"}[5m]) > 1', known)

    @pytest.mark.parametrize("content", ["", "<html>", "no metrics } here"])
    def test_a_page_without_metrics_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "page").write_text(content)
        with pytest.raises(SetupError, match="contains no metrics"):
            known_of(str(tmp_path / "page"))

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match="cannot be read"):
            known_of(str(tmp_path / "none"))

    def test_an_unreachable_address_is_refused(self) -> None:
        with pytest.raises(SetupError, match="is unreachable"):
            known_of("http://127.0.0.1:1/metrics")


class OneSeries(BaseHTTPRequestHandler):
    """A Prometheus API with one series, `up`."""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)["query"][0]
        result = [{"metric": {}, "value": [0, "1"]}] if query == "count(up)" else []
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"status": "success", "data": {"result": result}}).encode())

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


class TestPrometheus:
    @pytest.fixture
    def address(self) -> Iterator[str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), OneSeries) as server:
            thread = Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    def test_a_selector_without_series_is_reported(self, address: str) -> None:
        rules = yaml.safe_dump(
            {"groups": [{"rules": [{"alert": "A", "expr": 'up == 0 and gone{a="b"} offset 1d > 1'}]}]}
        )
        (issue,) = unmatched({"rules.yml": rules}, address)
        assert (issue.kind, issue.place) == ("no-series-now", "alert A")
        assert issue.message.startswith('gone{a="b"} matches no series')


class TestCommand:
    def test_it_prints_each_issue_with_a_hint_and_exits_1(self, run) -> None:
        done = run("monitoring", "lint", RULES, DASHBOARD)
        assert done.code == 1
        assert "alert MCPHighErrorRate: error: the two sides of '/' never match" in done.stdout
        assert "    Did you mean 'mcp_cost_usd_total'?" in done.stdout
        assert "2 files: " in done.stderr

    def test_json_is_one_array(self, run) -> None:
        done = run("monitoring", "lint", "--json", RULES)
        assert {issue["kind"] for issue in json.loads(done.stdout)} >= {"never-matches", "lifetime-counter"}

    def test_a_warning_fails_only_with_strict(self, run, tmp_path: Path) -> None:
        quiet = tmp_path / "quiet.yml"
        quiet.write_text("groups: [{name: g, rules: [{alert: A, expr: 'increase(mcp_errors_total[5m]) > 0'}]}]")
        assert run("monitoring", "lint", quiet).code == 0
        assert run("monitoring", "lint", "--strict", quiet).code == 1

    def test_a_missing_parser_names_the_extra_to_install(self, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        for name in [name for name in sys.modules if name.startswith("mcpmeter.monitoring.lint")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "promql_parser", None)
        assert run_command(["monitoring", "lint", str(RULES)]) == 1
        assert "pip install 'mcpmeter[server,monitoring]'" in capsys.readouterr().err

    def test_an_unreadable_file_is_named(self, run, tmp_path: Path) -> None:
        done = run("monitoring", "lint", tmp_path / "none.yml")
        assert done.code == 1
        assert "none.yml cannot be read: No such file or directory." in done.stderr
