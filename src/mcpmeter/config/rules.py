"""Rules between settings: pure functions over the whole tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import combinations
from typing import Final, NamedTuple

from mcpmeter.config.faults import Fault, Where, dotted, nearest
from mcpmeter.config.limits import budget_faults, project_faults
from mcpmeter.config.relay import ProviderSettings, RouteSettings, TimeoutSettings
from mcpmeter.config.settings import Settings
from mcpmeter.errors import ConfigInvalid
from mcpmeter.providers import GENERIC, Provider

ALIAS: Final = re.compile(r"[!-)+->@-Z\\-~]{1,200}")
"""A model's name without glob characters."""

EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104 (compared, not bound)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`. Of names only `localhost` counts."""
    bare = host.strip("[]").lower()
    try:
        return bare == "localhost" or ip_address(bare).is_loopback
    except ValueError:
        return False


class Listener(NamedTuple):
    """An address that the service listens on."""

    section: str
    host: str
    port: int
    needs_key: bool
    has_metrics: bool


def listeners(settings: Settings) -> list[Listener]:
    """The listeners of a configuration, the service's own first."""
    server, metrics, admin = settings.server, settings.metrics, settings.server.admin
    shares = metrics.port is None
    found = [Listener("server", server.host, server.port, needs_key=True, has_metrics=shares and admin is None)]
    if admin is not None:
        found.append(Listener("server.admin", admin.host, admin.port, needs_key=True, has_metrics=shares))
    if metrics.port is not None:
        host = metrics.host or "127.0.0.1"
        found.append(Listener("metrics", host, metrics.port, needs_key=False, has_metrics=True))
    return found


def refuse_open_bind(settings: Settings, have_keys: bool) -> None:
    """Raises ConfigInvalid, one line per fault, if the network can reach a listener that does not know its callers.

    `have_keys`: whether a key exists in the configuration or in the ledger.
    """
    if faults := list(_open_bind_faults(settings, have_keys)):
        raise ConfigInvalid("\n".join(faults))


def _open_bind_faults(settings: Settings, have_keys: bool) -> Iterator[str]:
    metrics = settings.metrics
    reachable = [listener for listener in listeners(settings) if not is_loopback(listener.host)]
    for listener in reachable:
        opened = f"'{listener.section}.host' {listener.host} can be reached from the network"
        if listener.needs_key and not have_keys:
            hint = "run: mcpmeter keys create --name NAME --team TEAM; or listen on 127.0.0.1"
            yield f"{opened} and there is no key; {hint}"
        if listener.has_metrics and not (metrics.public or metrics.bearer_token):
            line = 'metrics: {bearer_token: "${METRICS_TOKEN}"}'
            yield f"{opened} and /metrics there has no token; add {line}, or metrics: {{public: true}}"
    if reachable and not settings.server.allowed_hosts:
        opened = f"'{reachable[0].section}.host' {reachable[0].host} can be reached from the network"
        line = "allowed_hosts: [meter.example.com]"
        yield f"{opened} and 'server.allowed_hosts' is empty; add the names by which it is called to 'server': {line}"


def rule_faults(settings: Settings, builtin: Mapping[str, Provider]) -> Iterator[Fault]:
    """Every fault between values, as opposed to within one."""
    yield from _repeated("providers", (entry.name for entry in settings.providers))
    yield from _repeated("teams", (entry.name for entry in settings.teams))
    yield from _repeated("keys", (entry.name for entry in settings.keys))
    yield from _repeated("budgets", (entry.name for entry in settings.budgets))
    yield from _same_secret(settings)
    for index, entry in enumerate(settings.providers):
        yield from _provider_faults(("providers", index), entry, builtin)
        yield from _provider_key_faults(("providers", index), entry)
        yield from _provider_timeout_faults(("providers", index), entry, settings.relay.timeouts)
    yield from _team_faults(settings)
    yield from project_faults(settings)
    yield from budget_faults(settings)
    yield from _ledger_faults(settings)
    yield from _default_provider_faults(settings)
    yield from _listener_faults(settings)
    yield from _timeout_faults(settings)
    yield from _retry_faults(settings)
    if settings.providers:
        yield from routing_faults(settings)
    for index, path in enumerate(settings.pricing.files):
        if not path.is_file():
            yield Fault(("pricing", "files", index), f"'pricing.files[{index}]' is no file; create it or fix the path")


def _repeated(section: str, names: Iterable[str]) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            sentence = f"'{section}[{index}]' has the name '{name}' of '{section}[{seen[name]}]'; names are given once"
            yield Fault((section, index), sentence)
        seen.setdefault(name, index)


def _same_secret(settings: Settings) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for index, key in enumerate(settings.keys):
        if key.digest in seen:
            sentence = f"'keys[{index}]' is the same key as 'keys[{seen[key.digest]}]'; each caller needs its own"
            yield Fault(("keys", index), sentence)
        seen.setdefault(key.digest, index)


def _provider_faults(where: Where, entry: ProviderSettings, builtin: Mapping[str, Provider]) -> Iterator[Fault]:
    kind = entry.type or entry.name
    base = builtin.get(kind)
    name = f"'providers[{where[1]}]'"
    if base is None:
        advice = f"{nearest(kind, builtin)} Any other OpenAI-compatible one: 'type: {GENERIC}'"
        yield Fault((*where, "type" if entry.type else "name"), f"{name}: no provider is built in as '{kind}'{advice}")
    elif not (entry.base_url or base.base_url):
        yield Fault(where, f"{name} is of type '{kind}', which has no address; add 'base_url'")
    elif not entry.secrets and base.key_env and entry.base_url in (None, base.base_url):
        yield Fault(where, f"{name} has no key; set {base.key_env} in the environment, or add 'api_key'")


def _provider_key_faults(where: Where, entry: ProviderSettings) -> Iterator[Fault]:
    name = f"'providers[{where[1]}]'"
    if entry.api_key is not None and entry.api_keys:
        yield Fault((*where, "api_keys"), f"{name} has 'api_key' and 'api_keys'; put all keys into 'api_keys'")
    elif len(set(entry.secrets)) < len(entry.secrets):
        yield Fault((*where, "api_keys"), f"{name} has the same key twice in 'api_keys'; remove one")


def _provider_timeout_faults(where: Where, entry: ProviderSettings, common: TimeoutSettings) -> Iterator[Fault]:
    if not entry.timeouts.model_fields_set:
        return
    times = entry.timeouts.over(common)
    for name in ("connect_seconds", "first_byte_seconds", "idle_seconds"):
        if getattr(times, name) > times.total_seconds:
            sentence = f"'providers[{where[1]}].timeouts': '{name}' is more than 'total_seconds'; set both"
            given = name if name in entry.timeouts.model_fields_set else "total_seconds"
            yield Fault((*where, "timeouts", given), sentence)


def _retry_faults(settings: Settings) -> Iterator[Fault]:
    retries = settings.relay.retries
    if retries.cap_ms < retries.base_ms:
        yield Fault(("relay", "retries", "cap_ms"), "'relay.retries.cap_ms' is less than 'base_ms'; raise it")


def routing_faults(settings: Settings) -> Iterator[Fault]:
    """Every fault of routes and aliases against the providers, from the file or from the environment."""
    providers = [entry.name for entry in settings.providers]
    seen: dict[str, int] = {}
    for index, route in enumerate(settings.routes):
        yield from _route_faults(index, route, providers)
        for model in dict.fromkeys(route.models):
            if model in seen:
                sentence = (
                    f"'routes[{index}]' never applies to '{model}': 'routes[{seen[model]}]' has it; remove one of them"
                )
                yield Fault(("routes", index, "models"), sentence)
            seen.setdefault(model, index)
    for name, target in settings.aliases.items():
        yield from _alias_faults(name, target, providers)


def _route_faults(index: int, route: RouteSettings, providers: Sequence[str]) -> Iterator[Fault]:
    seen: set[tuple[str, str | None]] = set()
    for position, entry in enumerate(route.upstreams):
        where: Where = ("routes", index, "upstreams", position)
        name = f"'routes[{index}].upstreams[{position}]'"
        if entry.name not in providers:
            yield Fault(where, f"{name} is '{entry.name}', which is not in 'providers'{nearest(entry.name, providers)}")
        elif (entry.name, entry.model) in seen:
            yield Fault(where, f"{name} is '{entry.name}' again; set its share by 'weight', or remove it")
        if entry.weight is not None and route.mode == "ordered":
            yield Fault(where, f"{name} has a weight, which only 'mode: weighted' uses; add that")
        seen.add((entry.name, entry.model))


def _alias_faults(name: str, target: str, providers: Sequence[str]) -> Iterator[Fault]:
    where: Where = ("aliases", name)
    prefix, provider = name.partition("/")[0], target.partition("/")[0]
    if not ALIAS.fullmatch(name):
        yield Fault(where, f"'{dotted(where)}' must be named in 1 to 200 printable characters, no blanks or '*?['")
    elif "/" in name and prefix in providers:
        yield Fault(where, f"'{dotted(where)}' already means a model of '{prefix}'; choose a name without '{prefix}/'")
    if provider not in providers:
        sentence = f"'{dotted(where)}' stands for a model of '{provider}', which is not in 'providers'"
        yield Fault(where, f"{sentence}{nearest(provider, providers)}")


def _team_faults(settings: Settings) -> Iterator[Fault]:
    teams = [team.name for team in settings.teams]
    for index, key in enumerate(settings.keys):
        if teams and key.team not in teams:
            sentence = f"'keys[{index}].team' is '{key.team}', which is not in 'teams'{nearest(key.team, teams)}"
            yield Fault(("keys", index, "team"), sentence)


def _ledger_faults(settings: Settings) -> Iterator[Fault]:
    ledger = settings.ledger
    if ledger.url is not None and "synchronous" in ledger.model_fields_set:
        yield Fault(("ledger", "synchronous"), "'ledger.synchronous' is for 'path', not for 'url'; remove it")


def _default_provider_faults(settings: Settings) -> Iterator[Fault]:
    name, names = settings.relay.default_provider, [entry.name for entry in settings.providers]
    if names and name is not None and name not in names:
        sentence = f"'relay.default_provider' is '{name}', which is not in 'providers'{nearest(name, names)}"
        yield Fault(("relay", "default_provider"), sentence)


def _listener_faults(settings: Settings) -> Iterator[Fault]:
    metrics = settings.metrics
    if metrics.host is not None and metrics.port is None:
        yield Fault(("metrics", "host"), "'metrics.host' needs 'metrics.port'; add the port, or remove the host")
    if metrics.public and metrics.bearer_token is not None:
        yield Fault(("metrics", "public"), "'metrics.public' is true beside 'metrics.bearer_token'; remove one of them")
    for first, second in combinations(listeners(settings), 2):
        hosts = {first.host, second.host}
        if second.port and second.port == first.port and (len(hosts) == 1 or hosts & EVERY_ADDRESS):
            where: Where = (*second.section.split("."), "port")
            sentence = f"'{dotted(where)}' is '{first.section}.port'; remove it, or choose another"
            yield Fault(where, sentence)


def _timeout_faults(settings: Settings) -> Iterator[Fault]:
    times = settings.relay.timeouts
    for name in ("connect_seconds", "first_byte_seconds", "idle_seconds"):
        if getattr(times, name) > times.total_seconds:
            sentence = f"'relay.timeouts.{name}' is more than 'total_seconds'; no wait can be longer than the call"
            yield Fault(("relay", "timeouts", name), sentence)
