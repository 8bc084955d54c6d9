"""The settings tree: every name, its default, what it is for and an example. docs/configuration.md is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, PrivateAttr, SecretStr, model_validator

from mcpmeter.config.budgets import AttributionSettings, BudgetSettings, FallbackSettings, TeamSettings
from mcpmeter.config.fields import (
    AliasTarget,
    AllowedHost,
    AllowedOrigin,
    Bytes,
    FilePath,
    Host,
    Lease,
    LedgerConnect,
    LedgerUrl,
    Port,
    Rate,
    Seconds,
    Secret,
    Section,
    SettleSeconds,
    Switch,
    matching,
    must,
    setting,
)
from mcpmeter.config.keys import KeySettings
from mcpmeter.config.monitoring import MonitoringSettings
from mcpmeter.config.relay import ProviderSettings, RelaySettings, RouteSettings
from mcpmeter.config.server import ServerLimitSettings, ServerTimeoutSettings
from mcpmeter.ledger.location import Location, PostgresUrl, default_location, location_of
from mcpmeter.ledger.sqlite.connection import Synchronous
from mcpmeter.meter import SETTLE_SECONDS
from mcpmeter.providers import Provider, load_providers
from mcpmeter.routing.routes import Routing, Upstream


class AdminSettings(Section):
    """A listener of its own for metrics, reload and the administration of keys: `server` then answers 404 there."""

    host: Host = setting("127.0.0.1", help="Address to listen on.", example="10.0.0.5")
    port: Port = setting(help="TCP port; 0 picks a free one.", example=9465)


class ServerSettings(Section):
    """Where the service listens and what it accepts."""

    host: Host = setting(
        "127.0.0.1",
        help="Address to listen on. Any other than loopback needs a key, `allowed_hosts` and a token for `/metrics`.",
        example="0.0.0.0",  # noqa: S104
    )
    port: Port = setting(8000, help="TCP port; 0 picks a free one.", example=8080)
    max_body_bytes: Bytes = setting(10_485_760, help="Maximum size of a request body, in bytes.", example=20_971_520)
    allowed_hosts: tuple[AllowedHost, ...] = setting(
        (),
        help="Names accepted in the Host header by every listener, in addition to those of loopback: with any port, or"
        " with the one given. Required if `host` is not loopback. See docs/access.md.",
        example=["meter.example.com"],
    )
    allowed_origins: tuple[AllowedOrigin, ...] = setting(
        (),
        help="Origins whose pages and apps may call the service, as browsers send them. None but the service's own by"
        " default, and that only for pages and `/api`.",
        example=["https://chat.example.com", "app://obsidian.md"],
    )
    admin: AdminSettings | None = setting(
        None,
        help="A separate listener for `/metrics`, `/-/reload` and `/api/keys`; default: they are on the service's own.",
        example={"port": 9465},
    )
    end_revoked_streams: Switch = setting(
        True,
        help="End running streams and MCP sessions of a key within a second after it was revoked, removed or has"
        " expired; `false` lets them run to their end.",
        example=False,
    )
    drain_seconds: Seconds = setting(
        30.0, help="How long running streams may continue after SIGTERM, in seconds.", example=10.0
    )
    timeouts: ServerTimeoutSettings = setting(
        ServerTimeoutSettings(), help="How long clients may take.", example={"headers_seconds": 10.0}
    )
    limits: ServerLimitSettings = setting(
        ServerLimitSettings(), help="How much clients may hold at once.", example={"connections": 4096}
    )


class MetricsSettings(Section):
    """Where `/metrics` is served, if not on the service's own port."""

    host: Host | None = setting(
        None, help="Address of the metrics listener; default: loopback. Needs `port`.", example="127.0.0.1"
    )
    port: Port | None = setting(
        None, help="Port of a separate listener for metrics; default: the service's own port.", example=9464
    )
    bearer_token: Secret | None = setting(
        None, help="Token that a scrape must send; default: none is required.", example="${METRICS_TOKEN}"
    )
    public: Switch = setting(
        False,
        help="Whether `/metrics` may be read without a token from beyond loopback.",
        example=True,
    )


class LedgerSettings(Section):
    """Where every call is recorded."""

    path: FilePath | None = setting(
        None, help="The ledger's file; default: in the user's data folder.", example="/var/lib/mcpmeter/ledger.db"
    )
    url: LedgerUrl | None = setting(
        None,
        help="Or a PostgreSQL database, for several replicas: `postgresql://user:password@host:5432/database`.",
        example="${LEDGER_URL}",
    )
    lease_seconds: Lease = setting(
        30.0,
        help="With `url`: seconds without a sign of life after which a replica's open calls are recovered.",
        example=10.0,
    )
    connect_seconds: LedgerConnect = setting(
        3.0,
        help="With `url`: seconds within which PostgreSQL has to accept a connection, over all hosts of the address,"
        " and to commit a call's row. After that the call is refused.",
        example=2.0,
    )
    synchronous: Synchronous = setting(
        "full",
        help="With `path`: `normal` is faster and loses the rows of the last moments before a power loss or a kernel"
        " crash, but none in a kill -9 or a crash of the service.",
        example="normal",
    )
    settle_seconds: SettleSeconds = setting(
        SETTLE_SECONDS,
        help="How long the settlement of a call waits for the ledger before it goes to the pending file, in seconds."
        " The end of the response waits for as long.",
        example=0.5,
    )
    pending_path: FilePath | None = setting(
        None,
        help="Folder of the pending file, which keeps settled calls while the ledger cannot take them; default: beside"
        " the ledger's file, or with `url` in the user's data folder.",
        example="/var/lib/mcpmeter",
    )

    @model_validator(mode="after")
    def _path_or_url(self) -> LedgerSettings:
        if self.path is not None and self.url is not None:
            raise must("takes 'path' or 'url', not both")
        return self

    def at(self, location: Location) -> LedgerSettings:
        """The same settings with the ledger at another location."""
        if isinstance(location, PostgresUrl):
            url = SecretStr(location.reveal())
            return self.model_copy(update={"path": None, "url": url, "synchronous": "full"})
        return self.model_copy(update={"path": location, "url": None})

    @property
    def location(self) -> Location:
        """Where the ledger is: as configured, else `$MCPMETER_LEDGER`, else the file in the user's data folder."""
        if self.url is not None:
            return location_of(self.url.get_secret_value())
        return self.path or default_location()


class CurrencySettings(Section):
    """A second currency for display; the ledger stays in USD."""

    code: Annotated[str, AfterValidator(matching(r"[A-Z]{3}", "must be three capital letters, as in ISO 4217"))] = (
        setting(help="ISO 4217 code.", example="CNY")
    )
    rate: Rate = setting(help="Units of it per US dollar.", example=Decimal("7.2"))


class PricingSettings(Section):
    """Prices in addition to the built-in lists."""

    files: tuple[FilePath, ...] = setting(
        (), help="Additional price lists and overlays, relative to this file's folder.", example=["prices/ours.toml"]
    )
    currency: CurrencySettings | None = setting(
        None, help="A second currency for display.", example={"code": "CNY", "rate": Decimal("7.2")}
    )
    fallback: FallbackSettings = setting(
        FallbackSettings(),
        help="Prices at which models and items without a price count against budgets.",
        example={"prompt_usd_per_mtok": Decimal("2.5")},
    )


class Settings(Section):
    """The whole tree."""

    server: ServerSettings = setting(ServerSettings(), help="The listener.", example={"port": 8080})
    metrics: MetricsSettings = setting(MetricsSettings(), help="Where `/metrics` is.", example={"port": 9464})
    ledger: LedgerSettings = setting(LedgerSettings(), help="Where calls are recorded.", example={"path": "ledger.db"})
    relay: RelaySettings = setting(RelaySettings(), help="How calls are relayed.", example={"default_model": "gpt-4.1"})
    providers: tuple[ProviderSettings, ...] = setting(
        (),
        help="Upstreams, in order; default: every provider whose key is in the environment.",
        example=[{"name": "openai"}],
    )
    routes: tuple[RouteSettings, ...] = setting(
        (),
        help="Models that several providers serve.",
        example=[{"models": ["gpt-4.1"], "upstreams": ["openai", "holysheep"]}],
    )
    aliases: Mapping[str, AliasTarget] = setting(
        {},
        help="Names that callers may use, and the `provider/model` that each stands for.",
        example={"fast": "openai/gpt-4.1-mini"},
    )
    teams: tuple[TeamSettings, ...] = setting(
        (), help="Teams; if given, every key's team must be one of them.", example=["search", "support"]
    )
    keys: tuple[KeySettings, ...] = setting(
        (), help="Callers' keys.", example=[{"name": "backend", "team": "search", "secret": "${SEARCH_KEY}"}]
    )
    attribution: AttributionSettings = setting(
        AttributionSettings(), help="The project of a call.", example={"values": ["web", "mobile"]}
    )
    budgets: tuple[BudgetSettings, ...] = setting(
        (),
        help="Limits on the cost of calls.",
        example=[{"name": "search-monthly", "team": "search", "limit_usd": Decimal(500)}],
    )
    pricing: PricingSettings = setting(PricingSettings(), help="Prices.", example={"files": ["prices/ours.toml"]})
    monitoring: MonitoringSettings = setting(
        MonitoringSettings(),
        help="Input of the generated rules, routes and dashboards.",
        example={"region": "eu-west-1"},
    )

    _source: str = PrivateAttr(default="defaults")

    @property
    def source(self) -> str:
        """The origin of the settings: the file's path, `environment`, or `defaults`."""
        return self._source

    def upstreams(self, builtin: Mapping[str, Provider] | None = None) -> tuple[Upstream, ...]:
        """The configured upstreams in order, with their keys, as `routing` takes them. Raises ConfigInvalid."""
        known = load_providers() if builtin is None else builtin
        return tuple(
            Upstream(
                provider=entry.provider(known),
                api_keys=entry.secrets,
                models=entry.models,
                weight=entry.weight,
                timeouts=entry.timeouts.over(self.relay.timeouts),
            )
            for entry in self.providers
        )

    def routing(self, upstreams: tuple[Upstream, ...]) -> Routing:
        """Maps a model's name to these upstreams, by routes, aliases and the default provider."""
        return Routing(
            upstreams,
            rules=[route.rule() for route in self.routes],
            aliases=self.aliases,
            default=self.relay.default_provider,
        )
