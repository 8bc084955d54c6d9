"""The sections about providers and how calls reach them: timeouts, retries, circuits, upstreams, routes."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from mcpmeter.budgets.reservations import ASSUMED_COMPLETION_TOKENS, ASSUMED_TOOL_USES
from mcpmeter.config.fields import (
    ApiKey,
    BaseUrl,
    BillableItem,
    Bytes,
    Milliseconds,
    ModelName,
    Name,
    Seconds,
    Section,
    Share,
    Switch,
    UsagePath,
    Weight,
    Whole,
    name_alone,
    setting,
    some,
)
from mcpmeter.errors import ConfigInvalid
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.providers import Provider
from mcpmeter.relay.background_options import BackgroundOptions
from mcpmeter.relay.drains import DrainOptions
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.retries import RetryOptions
from mcpmeter.routing.routes import RouteRule, RuleUpstream


class TimeoutSettings(Section):
    """Timeouts of requests to providers, in seconds, and the limit on connections."""

    connect_seconds: Seconds = setting(5.0, help="To connect, including TLS.", example=3.0)
    first_byte_seconds: Seconds = setting(
        120.0, help="From the end of the request to the first byte of the response.", example=60.0
    )
    idle_seconds: Seconds = setting(60.0, help="Between two chunks of a stream.", example=30.0)
    total_seconds: Seconds = setting(600.0, help="For the whole call.", example=900.0)
    max_connections: Annotated[Whole, Field(ge=1, le=1_048_576)] | None = setting(
        None,
        help="Maximum number of connections to all providers; default: derived as `server.limits.connections` is.",
        example=1024,
    )


class RetrySettings(Section):
    """When a call is retried. It is never retried after its first byte was sent to the client."""

    max_attempts: Annotated[Whole, Field(ge=1, le=10)] = setting(
        3, help="Attempts per call, including the first; 1 disables retries.", example=2
    )
    budget_ratio: Share = setting(
        Decimal("0.2"),
        help="Maximum share of retries among all requests. The first ten retries are always allowed.",
        example=Decimal("0.1"),
    )
    base_ms: Milliseconds = setting(
        100,
        help="Maximum pause before the second attempt with the same provider key; it doubles each time.",
        example=50,
    )
    cap_ms: Milliseconds = setting(
        5000,
        help="Maximum pause. If Retry-After is longer, the call moves to another provider instead of waiting.",
        example=2000,
    )
    max_retry_after_seconds: Seconds = setting(
        300.0,
        help="Maximum time a Retry-After is honoured. After it, one call tries whether the provider answers again.",
        example=60.0,
    )
    same_place: Switch = setting(
        False,
        help="Also retry with the provider and key that failed. SDKs do this too, and the retries multiply.",
        example=True,
    )
    after_timeout: Switch = setting(
        False,
        help="Also retry when no response began in time. The provider may still be working, and bill both attempts.",
        example=True,
    )

    def options(self) -> RetryOptions:
        """As `routing` takes them."""
        return RetryOptions(
            max_attempts=self.max_attempts,
            budget_ratio=self.budget_ratio,
            base_seconds=self.base_ms / 1000,
            cap_seconds=self.cap_ms / 1000,
            max_wait_seconds=self.max_retry_after_seconds,
            same_place=self.same_place,
            after_timeout=self.after_timeout,
        )


class CircuitSettings(Section):
    """When a failing provider is skipped for a while, if another one serves the model."""

    failures: Annotated[Whole, Field(ge=1, le=1000)] = setting(
        5, help="Consecutive failures that open the circuit. A 4xx response is not a failure.", example=10
    )
    window_seconds: Seconds = setting(
        30.0, help="Time within which these failures have to occur, in seconds.", example=60.0
    )
    open_seconds: Seconds = setting(15.0, help="Seconds until one call tries the provider again.", example=30.0)

    def options(self) -> CircuitOptions:
        """As `routing` takes them."""
        return CircuitOptions(
            failures=self.failures, window_seconds=self.window_seconds, open_seconds=self.open_seconds
        )


class DisconnectSettings(Section):
    """Limits of responses that are read to their end after the client has disconnected."""

    drain_seconds: Seconds = setting(120.0, help="Maximum time a response is read on.", example=60.0)
    drain_bytes: Bytes = setting(16_777_216, help="Maximum number of bytes read on, per response.", example=4_194_304)
    max_drains: Annotated[Whole, Field(ge=0, le=65_536)] = setting(
        64, help="Responses read on at the same time; further ones are cancelled.", example=16
    )

    def options(self) -> DrainOptions:
        """As the relay takes them."""
        return DrainOptions(seconds=self.drain_seconds, max_bytes=self.drain_bytes, max_drains=self.max_drains)


class BackgroundSettings(Section):
    """How responses with `background: true` are followed at their providers until their usage is known."""

    first_poll_seconds: Seconds = setting(1.0, help="Pause before the first request for a response.", example=0.5)
    max_poll_seconds: Seconds = setting(
        30.0, help="Maximum pause between two of them; pauses grow by half each time.", example=10.0
    )
    give_up_seconds: Seconds = setting(
        86_400.0,
        help="A response that is still pending after so long is settled at its reservation.",
        example=7200.0,
    )
    max_calls: Annotated[Whole, Field(ge=1, le=100_000)] = setting(
        10_000, help="Maximum number of pending background responses; further ones are refused.", example=1000
    )

    def options(self) -> BackgroundOptions:
        """As `relay` takes them."""
        return BackgroundOptions(**self.model_dump())


class RelaySettings(Section):
    """How calls are relayed to providers."""

    default_model: ModelName = setting(
        "deepseek-v3.2", help="Model of `/mcp/chat` requests that name none.", example="gpt-4.1"
    )
    default_provider: Name | None = setting(
        None, help="Provider of models that no provider lists; default: the first one.", example="openai"
    )
    assumed_completion_tokens: Annotated[Whole, Field(ge=1, le=10_000_000)] = setting(
        ASSUMED_COMPLETION_TOKENS,
        help="Completion tokens that a call without a token limit reserves of budgets and rate limits.",
        example=16_384,
    )
    assumed_prompt_tokens: Annotated[Whole, Field(ge=1, le=100_000_000)] | None = setting(
        None,
        help="Prompt tokens that a call with a prompt by reference (`previous_response_id`, a file, a URL) reserves "
        "beside its body; default: the model's context window, or 200,000 if that is not known.",
        example=50_000,
    )
    assumed_tool_uses: Annotated[Whole, Field(ge=1, le=10_000)] = setting(
        ASSUMED_TOOL_USES,
        help="Uses that a call reserves of each tool that the provider runs and bills, if the request sets no maximum.",
        example=5,
    )
    max_answer_bytes: Bytes = setting(
        67_108_864, help="Maximum size of a provider's response, in bytes.", example=16_777_216
    )
    timeouts: TimeoutSettings = setting(
        TimeoutSettings(), help="Timeouts and connections.", example={"total_seconds": 900.0}
    )
    retries: RetrySettings = setting(RetrySettings(), help="Retries.", example={"max_attempts": 2})
    circuit: CircuitSettings = setting(CircuitSettings(), help="The circuit breaker.", example={"open_seconds": 30.0})
    disconnects: DisconnectSettings = setting(
        DisconnectSettings(), help="Limits of `on_disconnect: drain`.", example={"drain_seconds": 60.0}
    )
    background: BackgroundSettings = setting(
        BackgroundSettings(), help="Background responses.", example={"give_up_seconds": 7200.0}
    )


class ProviderTimeoutSettings(Section):
    """Timeouts of one provider, in seconds; default: those of `relay.timeouts`."""

    connect_seconds: Seconds | None = setting(None, help="To connect, including TLS.", example=3.0)
    first_byte_seconds: Seconds | None = setting(
        None, help="From the end of the request to the first byte of the response.", example=300.0
    )
    idle_seconds: Seconds | None = setting(None, help="Between two chunks of a stream.", example=30.0)
    total_seconds: Seconds | None = setting(None, help="For one attempt, including its response.", example=900.0)

    def over(self, common: TimeoutSettings) -> Timeouts:
        """These timeouts, completed by those of `relay.timeouts`."""
        given = self.model_dump(exclude_none=True)
        return Timeouts(**{**common.model_dump(exclude={"max_connections"}), **given})


class ProviderSettings(Section):
    """One upstream. The first of the list that serves a model gets its calls."""

    name: Name = setting(help="The name in metrics and in `name/model`.", example="openai")
    type: Name | None = setting(
        None,
        help="The built-in provider to start from (`generic` for any other); default: the name.",
        example="generic",
    )
    base_url: BaseUrl | None = setting(
        None,
        help="Address of the OpenAI-compatible API; default: the built-in one.",
        example="http://127.0.0.1:11434/v1",
    )
    api_key: ApiKey | None = setting(
        None,
        help="The provider's key; default: its usual environment variable, at the built-in address only.",
        example="${OPENAI_API_KEY}",
    )
    api_keys: tuple[ApiKey, ...] = setting((), help="Or several keys, used in turn.", example=["${OPENAI_API_KEY}"])
    models: tuple[ModelName, ...] = setting(
        (),
        help="Models served. Exact names take precedence over globs, and these over the built-in ones.",
        example=["llama-*"],
    )
    price_list: Name | None = setting(
        None, help="Price list that takes precedence over the public one.", example="holysheep"
    )
    usage_aliases: Mapping[UsagePath, BillableItem] = setting(
        {},
        help="Its own names of counts in `usage`: a field to the billable item that it counts, or to `free`.",
        example={"usage.my_cached": "cached_read"},
    )
    asks_stream_usage: Switch | None = setting(
        None,
        help="Whether the relay adds `stream_options.include_usage` to streams; default: the built-in provider's. An "
        "upstream that refuses the field does not get it again until a reload.",
        example=False,
    )
    cost_in_body: Switch | None = setting(
        None,
        help="Whether `usage.cost` of its responses is the cost in US dollars; set `false` for credits or cents.",
        example=False,
    )
    on_disconnect: Literal["cancel", "drain"] = setting(
        "cancel",
        help="When the client disconnects: `cancel` the request, or `drain`: read on, within `relay.disconnects`, for "
        "the provider's own count.",
        example="drain",
    )
    weight: Weight = setting(1, help="Its share of the calls in weighted routes that set no weight.", example=3)
    timeouts: ProviderTimeoutSettings = setting(
        ProviderTimeoutSettings(), help="Its own timeouts.", example={"first_byte_seconds": 300.0}
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        """All keys, in order."""
        keys = (self.api_key, *self.api_keys) if self.api_key else self.api_keys
        return tuple(key.get_secret_value() for key in keys)

    def provider(self, builtin: Mapping[str, Provider]) -> Provider:
        """The built-in provider under this name and address. Raises ConfigInvalid for an unknown type."""
        base = builtin.get(self.type or self.name)
        if base is None:
            raise ConfigInvalid(f"No provider is of type '{self.type or self.name}'.", hint="Use type: generic.")
        return base.renamed(
            self.name,
            base_url=self.base_url,
            price_list=self.price_list,
            usage_aliases=self.usage_aliases,
            asks_stream_usage=self.asks_stream_usage,
            cost_in_body=self.cost_in_body,
            drains=self.on_disconnect == "drain",
        )


class RouteUpstreamSettings(Section):
    """A provider of a route: a mapping, or its name as text."""

    name: Name = setting(help="The provider's name.", example="openai")
    weight: Weight | None = setting(
        None, help="With `mode: weighted`: its share of the calls; default: the provider's weight.", example=3
    )
    model: ModelName | None = setting(
        None, help="The model's name at this provider; default: the route's.", example="gpt-4.1"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return name_alone(value, cls, "must be the provider's name, or a mapping with 'name'")


class RouteSettings(Section):
    """Models that several providers serve interchangeably. The first route that matches a model applies."""

    models: Annotated[tuple[ModelName, ...], AfterValidator(some)] = setting(
        help="The models: exact names or globs.", example=["gpt-4.1", "gpt-4.1-*"]
    )
    upstreams: Annotated[tuple[RouteUpstreamSettings, ...], AfterValidator(some)] = setting(
        help="Providers, in the order in which they are tried.", example=["openai", "holysheep"]
    )
    mode: Literal["ordered", "weighted"] = setting(
        "ordered",
        help="`ordered` starts with the first available provider, `weighted` with one drawn by weight.",
        example="weighted",
    )
    model: ModelName | None = setting(
        None, help="The model's name at these providers; default: the requested one.", example="gpt-4.1"
    )

    def rule(self) -> RouteRule:
        """As `routing` takes it."""
        return RouteRule(
            models=self.models,
            upstreams=tuple(
                RuleUpstream(name=entry.name, weight=entry.weight, model=entry.model or self.model)
                for entry in self.upstreams
            ),
            mode=self.mode,
        )
