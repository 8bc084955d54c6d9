"""The settings tree: every name, its default, what it is for and an example. docs/configuration.md is made from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)

from mcpmeter.access.keys import KeyLimits
from mcpmeter.budgets.reservations import ASSUMED_COMPLETION_TOKENS
from mcpmeter.config.budgets import AttributionSettings, BudgetSettings, FallbackSettings, TeamSettings
from mcpmeter.config.fields import (
    AliasTarget,
    ApiKey,
    BaseUrl,
    Bytes,
    FilePath,
    Host,
    Instant,
    Lease,
    LedgerUrl,
    Milliseconds,
    ModelName,
    Name,
    PerMinute,
    Port,
    Rate,
    Seconds,
    Secret,
    Section,
    Sha256,
    Share,
    Switch,
    TeamName,
    Weight,
    Whole,
    matching,
    must,
    setting,
    some,
)
from mcpmeter.config.monitoring import MonitoringSettings
from mcpmeter.errors import ConfigInvalid
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.ledger.location import Location, PostgresUrl, default_location, location_of
from mcpmeter.ledger.sqlite.connection import Synchronous
from mcpmeter.pricing.rates import unix_ns
from mcpmeter.providers import Provider, load_providers
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.retries import RetryOptions
from mcpmeter.routing.routes import RouteRule, Routing, RuleUpstream, Upstream


class ServerSettings(Section):
    """Where the relay listens and what it takes in."""

    host: Host = setting("127.0.0.1", help="Address to listen on. Other than loopback needs a key.", example="0.0.0.0")  # noqa: S104
    port: Port = setting(8000, help="TCP port; 0 takes a free one.", example=8080)
    max_body_bytes: Bytes = setting(10_485_760, help="Largest request body, in bytes.", example=20_971_520)
    allowed_hosts: tuple[Host, ...] = setting(
        (), help="Host names accepted in the Host header beside loopback's own.", example=["meter.example.com"]
    )
    drain_seconds: Seconds = setting(
        30.0, help="How long running streams may go on after SIGTERM, in seconds.", example=10.0
    )


class MetricsSettings(Section):
    """Where `/metrics` is, if not on the relay's own port."""

    host: Host | None = setting(
        None, help="Address of the metrics listener; loopback unless given. Needs `port`.", example="127.0.0.1"
    )
    port: Port | None = setting(None, help="Port of a listener for metrics alone; none keeps them here.", example=9464)
    bearer_token: Secret | None = setting(
        None, help="Token that a scrape must send; none asks for none.", example="${METRICS_TOKEN}"
    )


class LedgerSettings(Section):
    """Where every call is written down."""

    path: FilePath | None = setting(
        None, help="The ledger's file; the user's data folder unless given.", example="/var/lib/mcpmeter/ledger.db"
    )
    url: LedgerUrl | None = setting(
        None,
        help="Or a PostgreSQL database, for several replicas: `postgresql://user:password@host:5432/database`.",
        example="${LEDGER_URL}",
    )
    lease_seconds: Lease = setting(
        30.0, help="With `url`: after so many seconds of silence a replica's open calls are recovered.", example=10.0
    )
    synchronous: Synchronous = setting(
        "full",
        help="With `path`: `normal` is faster and gives up rows of the last moments before a power loss or a crash of"
        " the kernel, never of those before a kill -9 or a crash of the service.",
        example="normal",
    )

    @model_validator(mode="after")
    def _one_place(self) -> LedgerSettings:
        if self.path is not None and self.url is not None:
            raise must("takes 'path' or 'url', not both")
        return self

    def at(self, place: Location) -> LedgerSettings:
        """The same with the ledger at another place."""
        if isinstance(place, PostgresUrl):
            url = SecretStr(place.reveal())
            return self.model_copy(update={"path": None, "url": url, "synchronous": "full"})
        return self.model_copy(update={"path": place, "url": None})

    @property
    def location(self) -> Location:
        """Where the ledger is: as configured, else `$MCPMETER_LEDGER`, else the user's own file."""
        if self.url is not None:
            return location_of(self.url.get_secret_value())
        return self.path or default_location()


class TimeoutSettings(Section):
    """How long to wait for a provider, in seconds, and how many connections to hold."""

    connect_seconds: Seconds = setting(5.0, help="To connect, TLS included.", example=3.0)
    first_byte_seconds: Seconds = setting(
        120.0, help="From the request's end to the answer's first byte.", example=60.0
    )
    idle_seconds: Seconds = setting(60.0, help="Between two chunks of a stream.", example=30.0)
    total_seconds: Seconds = setting(600.0, help="For the whole call.", example=900.0)
    max_connections: Annotated[Whole, Field(ge=1, le=65535)] = setting(
        512, help="Connections to all providers together.", example=1024
    )


class RetrySettings(Section):
    """When a call is tried again: before its first byte to the client, and never after."""

    max_attempts: Annotated[Whole, Field(ge=1, le=10)] = setting(
        3, help="Attempts of one call, the first among them; 1 never tries again.", example=2
    )
    budget_ratio: Share = setting(
        Decimal("0.2"),
        help="Further attempts, as a share of all requests. The first ten are lent.",
        example=Decimal("0.1"),
    )
    base_ms: Milliseconds = setting(
        100, help="Longest pause before the second attempt at the same place; it doubles each time.", example=50
    )
    cap_ms: Milliseconds = setting(
        5000, help="Longest pause at all. A longer Retry-After is not waited for: others are asked.", example=2000
    )
    same_place: Switch = setting(
        False,
        help="Also try the provider and key again that failed. Callers' SDKs do so; in two layers it adds up.",
        example=True,
    )
    after_timeout: Switch = setting(
        False,
        help="Also try again when no answer began in time. The provider may be working, and bill for both.",
        example=True,
    )

    def options(self) -> RetryOptions:
        """What the relay takes."""
        return RetryOptions(
            max_attempts=self.max_attempts,
            budget_ratio=self.budget_ratio,
            base_seconds=self.base_ms / 1000,
            cap_seconds=self.cap_ms / 1000,
            same_place=self.same_place,
            after_timeout=self.after_timeout,
        )


class CircuitSettings(Section):
    """When a provider that fails is left alone for a while, if there is another one."""

    failures: Annotated[Whole, Field(ge=1, le=1000)] = setting(
        5, help="Failures in a row that open the circuit. An answer of 4xx is none.", example=10
    )
    window_seconds: Seconds = setting(30.0, help="The row counts if it fits into so many seconds.", example=60.0)
    open_seconds: Seconds = setting(15.0, help="After so many seconds one call tries the provider again.", example=30.0)

    def options(self) -> CircuitOptions:
        """What the relay takes."""
        return CircuitOptions(
            failures=self.failures, window_seconds=self.window_seconds, open_seconds=self.open_seconds
        )


class RelaySettings(Section):
    """How calls are passed on."""

    default_model: ModelName = setting(
        "deepseek-v3.2", help="The model of a `/mcp/chat` request that names none.", example="gpt-4.1"
    )
    default_provider: Name | None = setting(
        None, help="The provider of models that no other serves; the first unless given.", example="openai"
    )
    assumed_completion_tokens: Annotated[Whole, Field(ge=1, le=10_000_000)] = setting(
        ASSUMED_COMPLETION_TOKENS,
        help="What a call that sets no limit of its answer reserves for it of budgets and rates, in tokens.",
        example=16_384,
    )
    max_answer_bytes: Bytes = setting(67_108_864, help="Largest answer of a provider, in bytes.", example=16_777_216)
    timeouts: TimeoutSettings = setting(
        TimeoutSettings(), help="Waiting times and connections.", example={"total_seconds": 900.0}
    )
    retries: RetrySettings = setting(RetrySettings(), help="Further attempts.", example={"max_attempts": 2})
    circuit: CircuitSettings = setting(
        CircuitSettings(), help="Leaving failing providers alone.", example={"open_seconds": 30.0}
    )


class ProviderTimeoutSettings(Section):
    """Waiting times of one provider, in seconds; those of `relay.timeouts` unless given."""

    connect_seconds: Seconds | None = setting(None, help="To connect, TLS included.", example=3.0)
    first_byte_seconds: Seconds | None = setting(
        None, help="From the request's end to the answer's first byte.", example=300.0
    )
    idle_seconds: Seconds | None = setting(None, help="Between two chunks of a stream.", example=30.0)
    total_seconds: Seconds | None = setting(None, help="For one attempt, its answer included.", example=900.0)

    def over(self, common: TimeoutSettings) -> Timeouts:
        """These, and what they leave out from `relay.timeouts`."""
        given = self.model_dump(exclude_none=True)
        return Timeouts(**{**common.model_dump(exclude={"max_connections"}), **given})


class ProviderSettings(Section):
    """One upstream. The order of the list is the order in which they are asked whether they serve a model."""

    name: Name = setting(help="The name in metrics and in `name/model`.", example="openai")
    type: Name | None = setting(
        None,
        help="The built-in provider to start from (`generic` for any other); the name unless given.",
        example="generic",
    )
    base_url: BaseUrl | None = setting(
        None,
        help="Address of the OpenAI-compatible API; the built-in one unless given.",
        example="http://127.0.0.1:11434/v1",
    )
    api_key: ApiKey | None = setting(
        None,
        help="The provider's key. At the built-in address its usual environment variable serves unless given.",
        example="${OPENAI_API_KEY}",
    )
    api_keys: tuple[ApiKey, ...] = setting((), help="Or several keys, which take turns.", example=["${OPENAI_API_KEY}"])
    models: tuple[ModelName, ...] = setting(
        (),
        help="Models served: exact names go before every pattern, globs before the built-in ones.",
        example=["llama-*"],
    )
    price_list: Name | None = setting(None, help="The price list that goes before the public one.", example="holysheep")
    weight: Weight = setting(1, help="Its share of the calls in a weighted route that gives none.", example=3)
    timeouts: ProviderTimeoutSettings = setting(
        ProviderTimeoutSettings(), help="Waiting times of its own.", example={"first_byte_seconds": 300.0}
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        """All keys, in order."""
        given = (self.api_key, *self.api_keys) if self.api_key else self.api_keys
        return tuple(key.get_secret_value() for key in given)

    def provider(self, builtin: Mapping[str, Provider]) -> Provider:
        """The built-in provider under this name and address. Raises ConfigInvalid: there is none of this type."""
        base = builtin.get(self.type or self.name)
        if base is None:
            raise ConfigInvalid(f"No provider is of type '{self.type or self.name}'.", hint="Use type: generic.")
        return base.renamed(self.name, base_url=self.base_url, price_list=self.price_list)


class RouteUpstreamSettings(Section):
    """A provider of a route. Its name alone, as text, will do."""

    name: Name = setting(help="The provider's name.", example="openai")
    weight: Weight | None = setting(
        None, help="Its share of the calls, with `mode: weighted`; the provider's own unless given.", example=3
    )
    model: ModelName | None = setting(None, help="The model's name there; the route's unless given.", example="gpt-4.1")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict | RouteUpstreamSettings):
            raise must("must be the provider's name, or a mapping with 'name'")
        return value


class RouteSettings(Section):
    """Models that several providers serve in each other's place. The first route that covers a model counts."""

    models: Annotated[tuple[ModelName, ...], AfterValidator(some)] = setting(
        help="The models: exact names or globs.", example=["gpt-4.1", "gpt-4.1-*"]
    )
    upstreams: Annotated[tuple[RouteUpstreamSettings, ...], AfterValidator(some)] = setting(
        help="Providers, in the order in which they are asked.", example=["openai", "holysheep"]
    )
    mode: Literal["ordered", "weighted"] = setting(
        "ordered", help="The first that can be called, or one drawn by weight, and then the next.", example="weighted"
    )
    model: ModelName | None = setting(
        None, help="The model's name at these providers; the one asked for unless given.", example="gpt-4.1"
    )

    def rule(self) -> RouteRule:
        """What the relay takes."""
        return RouteRule(
            models=self.models,
            upstreams=tuple(
                RuleUpstream(name=entry.name, weight=entry.weight, model=entry.model or self.model)
                for entry in self.upstreams
            ),
            mode=self.mode,
        )


class KeySettings(Section):
    """A caller's key: the secret itself by `${VARIABLE}`, or its SHA-256. `mcpmeter keys create` makes others."""

    name: TeamName = setting(help="The key's name in lists and logs.", example="search-backend")
    team: TeamName = setting(help="The team that pays.", example="search")
    secret: Secret | None = setting(None, help="The key, at least 32 characters.", example="${SEARCH_KEY}")
    sha256: Sha256 | None = setting(
        None, help="Or its SHA-256 in hex, so that no secret is here.", example=hashlib.sha256(b"").hexdigest()
    )
    project: TeamName | None = setting(None, help="The team's project that its calls are for.", example="web")
    role: Literal["caller", "admin"] = setting(
        "caller", help="An admin also sees and does all of the management API.", example="admin"
    )
    models: tuple[ModelName, ...] = setting(
        (), help="Models that it may call, names or globs; all unless given.", example=["gpt-4.1*", "deepseek-*"]
    )
    requests_per_minute: PerMinute | None = setting(None, help="Most calls in a minute of the clock.", example=600)
    tokens_per_minute: PerMinute | None = setting(
        None, help="Most tokens in a minute of the clock, prompts and answers together.", example=200_000
    )
    expires: Instant | None = setting(
        None, help="From this instant on it is refused: a date (its start, UTC), or RFC 3339.", example="2027-01-01"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> KeySettings:
        if (self.secret is None) == (self.sha256 is None):
            raise must("needs 'secret' or 'sha256', one of them")
        return self

    def limits(self) -> KeyLimits:
        """What the key may do, as the ring of keys takes it."""
        return KeyLimits(
            project=self.project or "",
            role=self.role,
            models=self.models,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            expires_at_ns=None if self.expires is None else unix_ns(self.expires),
        )

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the key, whichever way it was given."""
        if self.secret is None:
            return self.sha256 or ""
        return hashlib.sha256(self.secret.get_secret_value().encode()).hexdigest()


class CurrencySettings(Section):
    """A second currency to show amounts in; the books stay in USD."""

    code: Annotated[str, AfterValidator(matching(r"[A-Z]{3}", "must be three capital letters, as ISO 4217 has it"))] = (
        setting(help="ISO 4217 code.", example="CNY")
    )
    rate: Rate = setting(help="How many units one USD is.", example=Decimal("7.2"))


class PricingSettings(Section):
    """Prices beside the built-in lists."""

    files: tuple[FilePath, ...] = setting(
        (), help="More price lists; a path is taken from this file's folder.", example=["prices/ours.toml"]
    )
    currency: CurrencySettings | None = setting(
        None, help="A second currency to show amounts in.", example={"code": "CNY", "rate": Decimal("7.2")}
    )
    fallback: FallbackSettings = setting(
        FallbackSettings(),
        help="What models without a price count against budgets.",
        example={"prompt_usd_per_mtok": Decimal("2.5")},
    )


class Settings(Section):
    """The whole tree."""

    server: ServerSettings = setting(ServerSettings(), help="Where it listens.", example={"port": 8080})
    metrics: MetricsSettings = setting(MetricsSettings(), help="Where `/metrics` is.", example={"port": 9464})
    ledger: LedgerSettings = setting(LedgerSettings(), help="Where calls are kept.", example={"path": "ledger.db"})
    relay: RelaySettings = setting(
        RelaySettings(), help="How calls are passed on.", example={"default_model": "gpt-4.1"}
    )
    providers: tuple[ProviderSettings, ...] = setting(
        (),
        help="Upstreams, in order; those whose key is in the environment unless given.",
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
        (), help="Teams; where given, every key's team must be one of them.", example=["search", "support"]
    )
    keys: tuple[KeySettings, ...] = setting(
        (), help="Callers' keys.", example=[{"name": "backend", "team": "search", "secret": "${SEARCH_KEY}"}]
    )
    attribution: AttributionSettings = setting(
        AttributionSettings(), help="The project of a call.", example={"values": ["web", "mobile"]}
    )
    budgets: tuple[BudgetSettings, ...] = setting(
        (),
        help="What calls may cost.",
        example=[{"name": "search-monthly", "team": "search", "limit_usd": Decimal(500)}],
    )
    pricing: PricingSettings = setting(PricingSettings(), help="Prices.", example={"files": ["prices/ours.toml"]})
    monitoring: MonitoringSettings = setting(
        MonitoringSettings(), help="What rules, routes and dashboards are made from.", example={"region": "eu-west-1"}
    )

    _source: str = PrivateAttr(default="defaults")

    @property
    def source(self) -> str:
        """Where the settings came from: the file's path, `environment`, or `defaults`."""
        return self._source

    def upstreams(self, builtin: Mapping[str, Provider] | None = None) -> tuple[Upstream, ...]:
        """The configured upstreams in order, with their keys: what the relay takes. Raises ConfigInvalid."""
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
        """From a model's name to these upstreams, by routes, aliases and the default."""
        return Routing(
            upstreams,
            rules=[route.rule() for route in self.routes],
            aliases=self.aliases,
            default=self.relay.default_provider,
        )
