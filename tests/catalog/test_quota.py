"""The rows of upstream quotas, by the names and labels that dashboards and alerts were promised."""

from __future__ import annotations

import re

import pytest

from mcpmeter.catalog import quota

# Written by hand from the contract, not read from the catalog.
PROMISED = {
    "mcp_upstream_quota_limit": "",
    "mcp_upstream_quota_remaining": "",
    "mcp_upstream_quota_reset_timestamp_seconds": "seconds",
    "mcp_upstream_quota_exhaustion_seconds": "seconds",
}


def test_exactly_the_promised_gauges_are_there_with_their_labels_and_units() -> None:
    assert {row.name: row.unit for row in quota.ROWS} == PROMISED
    assert {row.type for row in quota.ROWS} == {"gauge"}
    assert {row.label_names for row in quota.ROWS} == {("provider", "credential", "resource")}
    assert {row.scale for row in quota.ROWS} == {1}


@pytest.mark.parametrize("resource", quota.RESOURCES)
def test_resources_are_a_closed_set_of_plain_words(resource: str) -> None:
    assert quota.RESOURCE.values == quota.RESOURCES
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", resource)
    assert quota.RESOURCES.count(resource) == 1


def test_credentials_are_announced_never_taken_from_a_header() -> None:
    assert quota.CREDENTIAL.values is None
    assert quota.CREDENTIAL.allowlist == "credential"
