"""Dashboards follow the options and have provisioning files."""

from __future__ import annotations

import json

import promql_parser
import yaml

from mcpmeter.monitoring import MonitoringOptions
from mcpmeter.monitoring.dashboards import pages
from mcpmeter.monitoring.render import grafana


def read(options: MonitoringOptions) -> dict[str, dict]:
    return {name: json.loads(text) for name, text in grafana.dashboards(options).items()}


def expressions(document: dict) -> list[str]:
    return [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]


def test_each_page_is_a_file() -> None:
    assert sorted(read(MonitoringOptions())) == [
        "llm-cost.json", "mcp-servers.json", "meter-itself.json", "overview.json", "upstreams.json",
    ]  # fmt: skip
    assert len(pages()) == 5


def test_the_configured_jobs_are_selected_initially() -> None:
    for document in read(MonitoringOptions(jobs=("relay", "weather"))).values():
        (job,) = (v for v in document["templating"]["list"] if v["name"] == "job")
        assert job["current"]["value"] == ["relay", "weather"]


def test_matchers_are_in_every_selector_and_escaped() -> None:
    value = 'prod "eu"\\1'
    for document in read(MonitoringOptions(matchers={"cluster": value})).values():
        for expr in expressions(document):
            assert expr.count('cluster="') == expr.count('job=~"$job"') > 0
            filled = expr.replace("$__rate_interval", "1m").replace("$__range", "1h")
            promql_parser.parse(filled)
            assert 'cluster="prod \\"eu\\"\\\\1"' in expr
        for variable in document["templating"]["list"]:
            query = str(variable["query"])
            assert query.count('cluster="') == query.count('instance=~"$instance"')


def test_without_options_the_dashboards_are_unchanged() -> None:
    (plain, chosen) = (read(MonitoringOptions()), read(MonitoringOptions(matchers={"a": "b"})))
    assert all(expressions(plain[name]) != expressions(chosen[name]) for name in plain)


def test_provisioning_names_dashboards_and_data_source() -> None:
    made = grafana.render(MonitoringOptions(service_scrape_interval_seconds=7))
    (source,) = yaml.safe_load(made["grafana/provisioning/datasources/mcpmeter.yaml"])["datasources"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", "7s")
    (provider,) = yaml.safe_load(made["grafana/provisioning/dashboards/mcpmeter.yaml"])["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", grafana.WHERE_GRAFANA_LOOKS)
