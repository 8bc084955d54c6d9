"""Providers: one TOML file each in this folder, and this module, which reads them.

Owns a provider's addresses, paths, authentication headers, model patterns and price sources. Does not own keys
(`config`), sending, or what its dialects mean.
Invariants: adding a provider is adding a file; a file is strict, an unknown key or a contradiction is refused with the
file's name; a `Provider` is immutable and holds no key; a fault never quotes an address.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from mcpmeter.errors import ConfigInvalid
from mcpmeter.items import is_alias_target

GENERIC: Final = "generic"
"""Base of an upstream without a file of its own; it has neither address nor key variable."""

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
HeaderFamily = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*-$", min_length=5)]
HeaderName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+$")]
Text = Annotated[str, msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """How the key is sent: the header's name, and the scheme before the key ("" for none)."""

    header: HeaderName = "authorization"
    scheme: str = "Bearer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorMarks:
    """How a provider's errors are read beyond their status. A mark is a code, or how the message begins, with `*` for
    what varies."""

    account: tuple[Text, ...] = ()
    """The relay's own key or account is refused or exhausted, whatever the status."""
    caller: tuple[Text, ...] = ()
    """A 403 about the content of the request."""
    configuration: tuple[Text, ...] = ()
    """A 403 about a tool or model that is not enabled for the relay's account; its key is valid."""
    rate_limit: tuple[Text, ...] = ()
    """A 402 that passes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider as its file describes it. Holds no key."""

    name: Name
    order: int = 100
    """Rank among the providers that the environment enables; lower comes first."""
    base_url: str = ""
    """Empty if each customer has its own address, which configuration must give."""
    key_env: str = ""
    """The environment variable of the key; it enables the provider if there is an address."""
    otel_name: str = ""
    """OpenTelemetry's well-known value of `gen_ai.provider.name`; the name itself if there is none."""
    genai_prices_id: str = ""
    """The id under which genai-prices lists the provider; "" for none."""
    price_list: str = ""
    """The price list that takes precedence over genai-prices; "" for none."""
    models: tuple[Text, ...] = ()
    """Names served, as globs (`gpt-*`)."""
    paths: Mapping[str, Text] = field(default_factory=dict)
    """A dialect's path name to the path below `base_url`: `chat` to `/chat/completions`. `{model}` is filled in."""
    auth: Auth = Auth()
    path_auth: Mapping[str, Auth] = field(default_factory=dict)
    """How the key is sent on paths where `auth` does not apply."""
    asks_stream_usage: bool = True
    """Whether a stream reports usage only if `stream_options` requests it; False: always, or never."""
    quota: str = ""
    """Style of its rate-limit headers, a key of `quota.rate_limit_headers.STYLES`; "" to try all."""
    error_marks: ErrorMarks = ErrorMarks()
    passed_headers: tuple[HeaderFamily, ...] = ()
    """Beginnings of names of its own response headers that go to clients (`openai-`), beside those of all providers."""
    cost_in_body: bool = True
    """Whether `usage.cost` in its responses is US dollars, as OpenRouter's is and LiteLLM's; False for a provider that
    reports credits or cents."""
    drains: bool = False
    """Whether a response is read to its end after the client has disconnected, for the provider's own count."""
    usage_aliases: Mapping[str, Text] = field(default_factory=dict)
    """Its own names of counts: a field's path (`usage.my_cached`) to an item (`cached_read`), a total, or `free`."""
    cost_header: str = ""
    """The response header with the call's cost in USD, lower case; "" for none."""

    def url(self, path_name: str, model: str = "") -> str:
        """The address of a dialect's endpoint. KeyError: the provider does not support the dialect."""
        path = self.paths[path_name]
        return self.base_url + (path.replace("{model}", quote(model, safe="")) if self.names_model(path_name) else path)

    def names_model(self, path_name: str) -> bool:
        """Whether the address of a dialect's endpoint names the model."""
        return "{model}" in self.paths[path_name]

    def auth_headers(self, api_key: str, path_name: str = "") -> dict[str, str]:
        """The header that authenticates with this key on a path; empty without a key."""
        auth = self.path_auth.get(path_name, self.auth)
        return {auth.header: f"{auth.scheme} {api_key}".strip()} if api_key else {}

    def renamed(
        self,
        name: str,
        *,
        base_url: str | None = None,
        usage_aliases: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Provider:
        """This provider with the name, address, further aliases and other settings of configuration; None leaves its
        own."""
        aliases = {**self.usage_aliases, **(usage_aliases or {})}
        moved = replace(self, usage_aliases=aliases)
        if base_url is not None:
            moved = replace(moved, base_url=base_url.rstrip("/"))
        given = {field: value for field, value in settings.items() if value is not None}
        return replace(moved, name=name, otel_name=self.otel_name or name, **given)


def load_providers(folder: Traversable | None = None) -> Mapping[str, Provider]:
    """All providers of a folder (by default the built-in one) by name, in their order.

    Raises ConfigInvalid, naming the file, unless each is strict TOML of `Provider`'s fields.
    """
    folder = files(__name__) if folder is None else folder
    found = [load_provider(file) for file in folder.iterdir() if file.name.endswith(".toml")]
    return MappingProxyType({provider.name: provider for provider in sorted(found, key=lambda p: (p.order, p.name))})


def load_provider(file: Traversable) -> Provider:
    """One provider from its file, whose name is the provider's. Raises ConfigInvalid."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
        _refuse_unknown_keys(raw, Provider)
        for auth in (raw.get("auth", {}), *_tables(raw.get("path_auth"))):
            _refuse_unknown_keys(auth, Auth)
        _refuse_unknown_keys(raw.get("error_marks"), ErrorMarks)
        provider = msgspec.convert(raw, Provider)
        _refuse_contradictions(provider, file.name)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as fault:
        raise ConfigInvalid(f"{file.name}: {fault}.", hint="Compare it with the other files of the folder.") from None
    return provider


def base_url_fault(url: str) -> str:
    """The fault of an upstream's address, as the end of a sentence that never quotes it; "" if there is none."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "is not an address"
    if parts.scheme not in ("http", "https") or not host:
        return "must begin with http:// or https:// and name a host"
    if parts.username is not None or parts.password is not None:
        return "must hold no user name or password; give the key as 'api_key'"
    if "?" in url or "#" in url:
        return "must have no query or fragment"
    if any(not char.isprintable() or char.isspace() for char in url):
        return "must hold no blanks or control characters"
    return ""


def _tables(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else ()


def _refuse_unknown_keys(table: object, kind: type[Any]) -> None:
    known = [entry.name for entry in fields(kind)]
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise msgspec.ValidationError(f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else ""))


def _refuse_contradictions(provider: Provider, filename: str) -> None:
    if filename != f"{provider.name}.toml":
        raise msgspec.ValidationError(
            f"the provider's name is '{provider.name}', so the file must be '{provider.name}.toml'"
        )
    if not provider.paths or not all(path.startswith("/") for path in provider.paths.values()):
        raise msgspec.ValidationError("'paths' needs at least one dialect, and each path begins with '/'")
    for path, name in provider.usage_aliases.items():
        if not is_alias_target(name):
            raise msgspec.ValidationError(f"'usage_aliases' gives '{path}' to '{name}', which is no billable item")
    if provider.name == GENERIC:
        return
    if unknown := provider.path_auth.keys() - provider.paths.keys():
        raise msgspec.ValidationError(f"'path_auth' names '{min(unknown)}', which is not in 'paths'")
    if provider.base_url and (fault := base_url_fault(provider.base_url)):
        raise msgspec.ValidationError(f"'base_url' {fault}")
    if provider.base_url.endswith("/"):
        raise msgspec.ValidationError("'base_url' must not end with '/'")
    if provider.key_env and not provider.key_env.isidentifier():
        raise msgspec.ValidationError("'key_env' must be a variable's name")
    if not provider.otel_name:
        raise msgspec.ValidationError("'otel_name' is needed")
