"""Every alert is complete, and promtool's unit tests confirm its cases."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from mcpmeter.monitoring import MonitoringOptions, files
from mcpmeter.monitoring.alert import Alert
from mcpmeter.monitoring.alerts import alerts, parameters
from mcpmeter.monitoring.options import Receivers
from mcpmeter.monitoring.queries import Queries
from mcpmeter.monitoring.spans import milliseconds, span

DEPLOY = Path(__file__).parents[2] / "deploy"
ALL = alerts(MonitoringOptions())
UNIT_TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.test.yml"))
PROMISED = {
    "MCPHighErrorRate",
    "MCPErrorRateSpike",
    "MCPErrorBudgetBurn",
    "MCPLatencyDegraded",
    "MCPActiveRequestsSpike",
    "HolySheepRelayDown",
    "MCPUpstreamDown",
    "MCPTokenBudgetWarning",
    "MCPBudgetForecastExceeded",
    "MCPBudgetExhausted",
    "MCPCostSpike",
    "MCPQuotaNearlyExhausted",
    "MCPToolErrors",
    "MCPQualityDegraded",
    "MCPUnpricedTraffic",
    "MCPCostDrift",
    "MCPLedgerFailing",
    "MCPLabelOverflow",
    "MCPTargetDown",
    "MCPAbsent",
    "Watchdog",
}

every_alert = pytest.mark.parametrize("alert", ALL, ids=lambda alert: alert.name)


def test_every_documented_alert_exists() -> None:
    assert {alert.name for alert in ALL} == PROMISED


@every_alert
def test_it_has_a_runbook_with_queries_and_steps(alert: Alert) -> None:
    book = alert.runbook
    assert len(book.means.split()) >= 8
    assert book.check
    assert book.do
    assert book.fault


@every_alert
def test_it_has_cases_that_fire_and_cases_that_do_not(alert: Alert) -> None:
    assert [case.title for case in alert.cases if case.firing]
    if alert.name != "Watchdog":  # it always fires
        assert len([case.title for case in alert.cases if not case.firing]) >= 4
    assert len({case.title for case in alert.cases}) == len(alert.cases)


@every_alert
def test_each_of_its_rules_fires_in_some_case(alert: Alert) -> None:
    seen = [firing.labels for case in alert.cases for firing in case.firing]
    unseen = [rule.labels for rule in alert.rules if not any(rule.labels.items() <= labels.items() for labels in seen)]
    # The quality signals are one expression on three metrics, of which two have cases.
    assert [labels for labels in unseen if labels.get("signal") != "refused"] == []


@every_alert
def test_its_description_names_its_subject(alert: Alert) -> None:
    if alert.name != "Watchdog":
        assert "{{ $labels." in alert.description


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.stem.removesuffix(".test"))
def test_promtool_confirms_its_cases(tool, file: Path) -> None:
    assert "SUCCESS" in tool("promtool", "test", "rules", file)


def test_every_alert_has_its_unit_tests_in_deploy() -> None:
    assert [file.name.removesuffix(".test.yml") for file in UNIT_TESTS] == [alert.name for alert in ALL]


def test_promtool_fails_on_a_wrong_case(tool, tmp_path) -> None:
    wrong = yaml.safe_load((DEPLOY / "prometheus/tests/MCPAbsent.test.yml").read_text())
    wrong["rule_files"] = [str(DEPLOY / "prometheus/tests" / path) for path in wrong["rule_files"]]
    wrong["tests"][0]["alert_rule_test"][0]["exp_alerts"] = []
    (tmp_path / "wrong.test.yml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(AssertionError, match="FAILED"):
        tool("promtool", "test", "rules", tmp_path / "wrong.test.yml")


class TestOptions:
    def expressions(self, **changes: object) -> str:
        made = files(MonitoringOptions(**changes))
        return "\n".join(content for path, content in made.items() if path.startswith("prometheus/rules/"))

    def test_a_threshold_replaces_the_default(self) -> None:
        ours = {"MCPHighErrorRate": {"ratio": Decimal("0.123")}}
        assert 'ratio_rate5m{job="mcpmeter"} > 0.123 and' in self.expressions(thresholds=ours)

    def test_an_alert_with_changed_thresholds_has_no_unit_test(self) -> None:
        made = files(MonitoringOptions(thresholds={"MCPHighErrorRate": {"ratio": Decimal("0.2")}}))
        assert "prometheus/tests/MCPHighErrorRate.test.yml" not in made
        assert "prometheus/tests/MCPErrorRateSpike.test.yml" in made

    def test_an_alert_can_be_disabled(self) -> None:
        assert "MCPCostSpike" not in self.expressions(without=frozenset({"MCPCostSpike"}))

    def test_the_objective_sets_the_burn_rates(self) -> None:
        assert 'ratio_rate1h{job="mcpmeter"} > 0.144 and' in self.expressions(slo_percent=Decimal(99))

    def test_every_selector_has_the_job_and_the_matchers(self) -> None:
        text = self.expressions(jobs=("meter", "servers.eu"), matchers={"namespace": "ai"})
        selectors = re.findall(r"[a-z_:0-9]*mcp_[a-z_:0-9]+\{([^}]*)\}", text)
        assert selectors
        wanted = (
            'job=~"meter|servers\\.eu",namespace="ai"',
            'job="meter",namespace="ai"',
            'job="servers.eu",namespace="ai"',
        )
        assert [found for found in selectors if not found.startswith(wanted)] == []

    def test_promtool_confirms_cases_with_other_matchers(self, tool, written) -> None:
        options = MonitoringOptions(jobs=("servers",), matchers={"namespace": "ai"})
        folder = written(options) / "prometheus" / "tests"
        for name in ("MCPHighErrorRate", "MCPAbsent", "MCPTargetDown", "MCPToolErrors"):
            tool("promtool", "test", "rules", folder / f"{name}.test.yml")

    def test_a_speedup_divides_windows_holds_and_offsets(self) -> None:
        text = self.expressions(speedup=60)
        assert "[5s]" in text
        assert "for: 5s" in text
        assert "offset 24m" in text
        assert "* 5 >= 20" in text
        assert not re.search(r"\[5m\]|for: 5m|offset 1d", text)

    def test_every_parameter_has_a_description_and_a_valid_default(self) -> None:
        for name, found in parameters().items():
            for parameter in found:
                assert parameter.what.endswith("."), (name, parameter.name)
                assert Decimal(parameter.default) <= Decimal(parameter.most)

    def test_receivers_do_not_change_rules(self) -> None:
        assert self.expressions(receivers=Receivers()) == self.expressions()


@pytest.mark.parametrize(("text", "ms"), [("5m", 300_000), ("1h30m", 5_400_000), ("250ms", 250), ("7d", 604_800_000)])
def test_durations_are_parsed_as_by_prometheus(text: str, ms: int) -> None:
    assert milliseconds(text) == ms
    assert milliseconds(span(ms)) == ms


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "1.5h", "-5m"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a Prometheus duration"):
        milliseconds(text)


def test_a_window_is_at_least_a_millisecond() -> None:
    assert Queries(MonitoringOptions(speedup=10**9)).span("5m") == "1ms"
