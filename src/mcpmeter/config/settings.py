"""The settings tree: every name, its default, what it is for and an example. docs/configuration.md is made from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mcpmeter.access.keys import weakness_of
from mcpmeter.errors import ConfigInvalid
from mcpmeter.relay.providers import Provider, base_url_fault, load_providers
from mcpmeter.relay.routing import Upstream


def _must(sentence: str) -> PydanticCustomError:
    # The sentence goes in by context: pydantic would read braces in it as places to fill.
    return PydanticCustomError("must", "{sentence}", {"sentence": sentence})


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _must("must be a whole number")
    return value


def _decimal(value: object) -> Decimal:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", value):
        return Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _must("must be a number in plain decimal")
    return Decimal(value)


def _seconds(value: object) -> float:
    return value if isinstance(value, float) else float(_decimal(value))


def _matching(pattern: str, sentence: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise _must(sentence)
        return text

    return check


def _label(text: str) -> str:
    if text == "other":
        raise _must("must not be 'other': that is the label of what has no name")
    return text


def _base_url(text: str) -> str:
    if fault := base_url_fault(text):
        raise _must(fault)
    return text.rstrip("/")


def sendable(key: str) -> bool:
    """Whether a key can stand in a header: printable ASCII, no blanks."""
    return key.isascii() and key.isprintable() and bool(key) and " " not in key


def _sendable_secret(secret: SecretStr) -> SecretStr:
    if not sendable(secret.get_secret_value()):
        raise _must("must be printable ASCII without blanks, and not empty")
    return secret


def _strong_secret(secret: SecretStr) -> SecretStr:
    if weakness := weakness_of(secret.get_secret_value()):
        raise _must(f"{weakness}; `openssl rand -hex 32` makes a good one")
    return secret


def _path(path: Path, info: ValidationInfo) -> Path:
    folder = info.context.get("folder") if info.context else None
    try:
        path = path.expanduser()
    except RuntimeError:
        raise _must("names the home of a user who is not known here") from None
    if not str(path).isprintable():
        raise _must("holds a character that no path should have")
    return folder / path if folder else path


NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

Whole = Annotated[int, BeforeValidator(_whole)]
Port = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=65535)]
Bytes = Annotated[int, BeforeValidator(_whole), Field(ge=1024, le=1 << 40)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0.01, le=86400, allow_inf_nan=False)]
Rate = Annotated[Decimal, BeforeValidator(_decimal), Field(gt=0, allow_inf_nan=False)]
Host = Annotated[
    str,
    AfterValidator(
        _matching(r"[A-Za-z0-9:._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]", "must be an IP address or a host name")
    ),
]
Name = Annotated[
    str,
    AfterValidator(
        _matching(NAME_PATTERN, "must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first")
    ),
    AfterValidator(_label),
]
TeamName = Annotated[
    str,
    AfterValidator(
        _matching(
            r"\w([\w .@+-]{0,62}\w)?", "must be 1 to 64 letters, digits, blanks or any of '.@+-_', no blank at an end"
        )
    ),
    AfterValidator(_label),
]
ModelName = Annotated[
    str, AfterValidator(_matching(r"[!-~]{1,200}", "must be 1 to 200 printable characters, no blanks"))
]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
ApiKey = Annotated[SecretStr, AfterValidator(_sendable_secret)]
Secret = Annotated[SecretStr, AfterValidator(_strong_secret)]
Sha256 = Annotated[str, AfterValidator(_matching(r"[0-9a-f]{64}", "must be a SHA-256: 64 hex digits in lower case"))]
FilePath = Annotated[Path, AfterValidator(_path)]


def setting(default: Any = ..., *, help: str, example: Any) -> Any:
    """A field of the tree: what it is for and an example, without which the reference would have a hole."""
    return Field(default=default, description=help, examples=[example])


class Section(BaseModel):
    """What all parts of the tree share: unknown keys are errors, nothing changes, no input is repeated in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


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


class RelaySettings(Section):
    """How calls are passed on."""

    default_model: ModelName = setting(
        "deepseek-v3.2", help="The model of a `/mcp/chat` request that names none.", example="gpt-4.1"
    )
    default_provider: Name | None = setting(
        None, help="The provider of models that no other serves; the first unless given.", example="openai"
    )
    max_answer_bytes: Bytes = setting(67_108_864, help="Largest answer of a provider, in bytes.", example=16_777_216)
    timeouts: TimeoutSettings = setting(
        TimeoutSettings(), help="Waiting times and connections.", example={"total_seconds": 900.0}
    )


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
    models: tuple[ModelName, ...] = setting(
        (),
        help="Models served: exact names go before every pattern, globs before the built-in ones.",
        example=["llama-*"],
    )
    price_list: Name | None = setting(None, help="The price list that goes before the public one.", example="holysheep")

    def provider(self, builtin: Mapping[str, Provider]) -> Provider:
        """The built-in provider under this name and address. Raises ConfigInvalid: there is none of this type."""
        base = builtin.get(self.type or self.name)
        if base is None:
            raise ConfigInvalid(f"No provider is of type '{self.type or self.name}'.", hint="Use type: generic.")
        return base.renamed(self.name, base_url=self.base_url, price_list=self.price_list)


class TeamSettings(Section):
    """A team that calls are charged to. Its name alone, as text, will do."""

    name: TeamName = setting(help="The team's name, a label in metrics and the ledger.", example="search")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict | TeamSettings):
            raise _must("must be the team's name, in quotes")
        return value


class KeySettings(Section):
    """A caller's key: the secret itself by `${VARIABLE}`, or its SHA-256. `mcpmeter keys create` makes others."""

    name: TeamName = setting(help="The key's name in lists and logs.", example="search-backend")
    team: TeamName = setting(help="The team that pays.", example="search")
    secret: Secret | None = setting(None, help="The key, at least 32 characters.", example="${SEARCH_KEY}")
    sha256: Sha256 | None = setting(
        None, help="Or its SHA-256 in hex, so that no secret is here.", example=hashlib.sha256(b"").hexdigest()
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> KeySettings:
        if (self.secret is None) == (self.sha256 is None):
            raise _must("needs 'secret' or 'sha256', one of them")
        return self

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the key, whichever way it was given."""
        if self.secret is None:
            return self.sha256 or ""
        return hashlib.sha256(self.secret.get_secret_value().encode()).hexdigest()


class CurrencySettings(Section):
    """A second currency to show amounts in; the books stay in USD."""

    code: Annotated[
        str, AfterValidator(_matching(r"[A-Z]{3}", "must be three capital letters, as ISO 4217 has it"))
    ] = setting(help="ISO 4217 code.", example="CNY")
    rate: Rate = setting(help="How many units one USD is.", example=Decimal("7.2"))


class PricingSettings(Section):
    """Prices beside the built-in lists."""

    files: tuple[FilePath, ...] = setting(
        (), help="More price lists; a path is taken from this file's folder.", example=["prices/ours.toml"]
    )
    currency: CurrencySettings | None = setting(
        None, help="A second currency to show amounts in.", example={"code": "CNY", "rate": Decimal("7.2")}
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
    teams: tuple[TeamSettings, ...] = setting(
        (), help="Teams; where given, every key's team must be one of them.", example=["search", "support"]
    )
    keys: tuple[KeySettings, ...] = setting(
        (), help="Callers' keys.", example=[{"name": "backend", "team": "search", "secret": "${SEARCH_KEY}"}]
    )
    pricing: PricingSettings = setting(PricingSettings(), help="Prices.", example={"files": ["prices/ours.toml"]})

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
                api_key=entry.api_key.get_secret_value() if entry.api_key else "",
                models=entry.models,
            )
            for entry in self.providers
        )
