"""What must hold between settings: pure rules over a whole tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Final

from mcpmeter.config.faults import Fault, Where, nearest
from mcpmeter.config.settings import ProviderSettings, Settings
from mcpmeter.errors import ConfigInvalid
from mcpmeter.relay.providers import GENERIC, Provider

EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104 (compared, not bound)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`. A name other than `localhost` never counts."""
    bare = host.strip("[]").lower()
    try:
        return bare == "localhost" or ip_address(bare).is_loopback
    except ValueError:
        return False


def refuse_open_bind(settings: Settings, have_keys: bool) -> None:
    """Raises ConfigInvalid where the network could reach a listener that asks for no key.

    `have_keys`: whether a key exists in configuration or in the ledger.
    """
    metrics_host = settings.metrics.host or "127.0.0.1"
    if not (have_keys or is_loopback(settings.server.host)):
        raise ConfigInvalid(
            f"'server.host' {settings.server.host} can be reached from the network and there is no key.",
            hint="Run: mcpmeter keys create NAME --team TEAM; or listen on 127.0.0.1.",
        )
    if not (have_keys or settings.metrics.bearer_token or is_loopback(metrics_host)):
        raise ConfigInvalid(
            f"'metrics.host' {metrics_host} can be reached from the network and there is no key.",
            hint="Give 'metrics.bearer_token', or listen on 127.0.0.1.",
        )


def broken_rules(settings: Settings, builtin: Mapping[str, Provider]) -> Iterator[Fault]:
    """Every fault that lies between values rather than in one."""
    yield from _repeated("providers", (entry.name for entry in settings.providers))
    yield from _repeated("teams", (entry.name for entry in settings.teams))
    yield from _repeated("keys", (entry.name for entry in settings.keys))
    yield from _same_secret(settings)
    for index, entry in enumerate(settings.providers):
        yield from _provider_faults(("providers", index), entry, builtin)
    yield from _team_faults(settings)
    yield from _default_provider_faults(settings)
    yield from _metrics_faults(settings)
    yield from _timeout_faults(settings)
    for index, path in enumerate(settings.pricing.files):
        if not path.is_file():
            yield Fault(("pricing", "files", index), f"'pricing.files[{index}]' is no file; create it or mend the path")


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
    place = f"'providers[{where[1]}]'"
    if base is None:
        advice = f"{nearest(kind, builtin)} Any other OpenAI-compatible one: 'type: {GENERIC}'"
        yield Fault((*where, "type" if entry.type else "name"), f"{place}: no provider is built in as '{kind}'{advice}")
    elif not (entry.base_url or base.base_url):
        yield Fault(where, f"{place} is of type '{kind}', which has no address; add 'base_url'")
    elif entry.api_key is None and base.key_env and entry.base_url in (None, base.base_url):
        yield Fault(where, f"{place} has no key; set {base.key_env} in the environment, or add 'api_key'")


def _team_faults(settings: Settings) -> Iterator[Fault]:
    teams = [team.name for team in settings.teams]
    for index, key in enumerate(settings.keys):
        if teams and key.team not in teams:
            sentence = f"'keys[{index}].team' is '{key.team}', which is not in 'teams'{nearest(key.team, teams)}"
            yield Fault(("keys", index, "team"), sentence)


def _default_provider_faults(settings: Settings) -> Iterator[Fault]:
    name, names = settings.relay.default_provider, [entry.name for entry in settings.providers]
    if names and name is not None and name not in names:
        sentence = f"'relay.default_provider' is '{name}', which is not in 'providers'{nearest(name, names)}"
        yield Fault(("relay", "default_provider"), sentence)


def _metrics_faults(settings: Settings) -> Iterator[Fault]:
    metrics, server = settings.metrics, settings.server
    if metrics.host is not None and metrics.port is None:
        yield Fault(("metrics", "host"), "'metrics.host' needs 'metrics.port'; add the port, or take the host out")
    hosts = {metrics.host or "127.0.0.1", server.host}
    if metrics.port and metrics.port == server.port and (len(hosts) == 1 or hosts & EVERY_ADDRESS):
        yield Fault(("metrics", "port"), "'metrics.port' is 'server.port'; take it out, or choose another")


def _timeout_faults(settings: Settings) -> Iterator[Fault]:
    times = settings.relay.timeouts
    for name in ("connect_seconds", "first_byte_seconds", "idle_seconds"):
        if getattr(times, name) > times.total_seconds:
            sentence = f"'relay.timeouts.{name}' is more than 'total_seconds'; no wait can be longer than the call"
            yield Fault(("relay", "timeouts", name), sentence)
