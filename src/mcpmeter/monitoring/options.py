"""What an operator decides about monitoring. Plain and frozen: `config` makes it from the `monitoring:` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class PagerDuty:
    """Who is woken."""

    routing_key_file: str
    url: str = ""
    """Another one than PagerDuty's own events API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """A channel that is told of everything from a warning up."""

    api_url_file: str
    channel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Any program that takes Alertmanager's JSON. The secret travels in the Authorization header, never in the URL."""

    url: str
    credentials_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """A mailbox for what can wait until the morning."""

    to: str
    sender: str
    smarthost: str
    username: str = ""
    password_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receivers:
    """Where notifications go; None is not told. Secrets are paths of files, as Alertmanager reads them."""

    pagerduty: PagerDuty | None = None
    slack: Slack | None = None
    webhook: Webhook | None = None
    email: Email | None = None
    dead_mans_switch: Webhook | None = None
    """What pages when Watchdog's notifications stop coming."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWrite:
    """A store beyond this Prometheus, for long history or for all regions together."""

    url: str
    username: str = ""
    password_file: str = ""
    credentials_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringOptions:
    """Everything the renderers take. The defaults are those of `mcpmeter.yaml` without a `monitoring:` section."""

    jobs: tuple[str, ...] = ("mcpmeter",)
    """Scrape jobs whose targets are metered; the first is the one that `prometheus.yml` defines."""

    matchers: Mapping[str, str] = field(default_factory=dict)
    """Further labels that every selector demands, for a Prometheus that several teams share."""

    targets: tuple[str, ...] = ("127.0.0.1:8000",)
    scheme: str = "http"
    bearer_token_file: str = ""
    """File with the token that `metrics.bearer_token` asks for."""

    scrape_interval_seconds: int = 15
    service_scrape_interval_seconds: int = 5
    """The service is scraped more often than the rest."""

    evaluation_interval_seconds: int = 15
    region: str = ""
    cluster: str = ""
    """External labels of this Prometheus; left out when empty."""

    alertmanagers: tuple[str, ...] = ("127.0.0.1:9093",)
    remote_write: tuple[RemoteWrite, ...] = ()
    federate: tuple[str, ...] = ()
    """Regional Prometheus servers that a global one gathers recorded series from, as host:port."""

    slo_percent: Decimal = Decimal("99.9")
    """Share of requests that must not fail on our side or upstream, over 30 days."""

    budget_soft_share: Decimal = Decimal("0.8")
    """Share of a budget at which its team is warned."""

    thresholds: Mapping[str, Mapping[str, Decimal]] = field(default_factory=dict)
    """Alert -> parameter -> value, where it differs from the alert's own default."""

    without: frozenset[str] = frozenset()
    """Alerts that are left out."""

    runbook_url: str = "docs/runbooks"
    """Where the pages of docs/runbooks/ are published; an alert links to this, "/", its name and ".md"."""

    receivers: Receivers = field(default_factory=Receivers)

    release: str = ""
    """Value of the `release` label by which a Prometheus operator picks its objects up; none when empty."""

    namespace: str = "mcpmeter"
    image: str = "mcpmeter:latest"
    """For Kubernetes and compose."""

    speedup: int = 1
    """Divides every window and every `for` of rules and routes, to see in minutes what takes hours. For tests."""
