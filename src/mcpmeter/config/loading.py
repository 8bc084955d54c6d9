"""Loads settings from a file, or from the environment alone."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Final

from pydantic import SecretStr, ValidationError

from mcpmeter.config.document import MAX_BYTES, Document, Value, read_document
from mcpmeter.config.faults import Fault, Where, from_validation, raise_for
from mcpmeter.config.fields import sendable
from mcpmeter.config.relay import ProviderSettings
from mcpmeter.config.rules import routing_faults, rule_faults
from mcpmeter.config.settings import Settings
from mcpmeter.errors import ConfigInvalid
from mcpmeter.monitoring import MonitoringOptions
from mcpmeter.providers import Provider, load_providers

DEFAULT_FILE: Final = "mcpmeter.yaml"
FILE_VARIABLE: Final = "MCPMETER_CONFIG"


def find_file(option: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: `--config`, else $MCPMETER_CONFIG, else ./mcpmeter.yaml if it exists, else none."""
    if option is not None:
        return option
    if environ.get(FILE_VARIABLE):
        return Path(environ[FILE_VARIABLE])
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def load(path: Path | None, environ: Mapping[str, str], builtin: Mapping[str, Provider] | None = None) -> Settings:
    """Settings from a YAML file, or from the environment alone if there is none.

    Raises ConfigInvalid with one line per fault, naming the file and line.
    """
    known = load_providers() if builtin is None else builtin
    settings = Settings(providers=_providers_in(environ, known)) if path is None else _from_file(path, environ, known)
    settings._source = "environment" if path is None else str(path)
    return settings


def load_monitoring(path: Path | None, environ: Mapping[str, str]) -> MonitoringOptions:
    """The `monitoring:` section alone. Raises ConfigInvalid with one line per fault in it."""
    return load_sections(path, environ, "monitoring").monitoring.options()


def load_sections(path: Path | None, environ: Mapping[str, str], *names: str) -> Settings:
    """The named sections, and defaults for the others, whose faults and unset variables are ignored.

    No provider's key is needed. Raises ConfigInvalid with one line per fault of the named sections and of the file as
    a whole, and per unknown section.
    """
    if path is None:
        return Settings()
    document = read_document(_content(path), environ)
    # A misspelt section is a fault: otherwise `legder:` would silently mean the default ledger.
    others = Settings.model_fields.keys() - set(names)
    faults = [fault for fault in document.faults if not fault.where or fault.where[0] not in others]
    data = document.data
    if isinstance(data, dict):
        data = {name: value for name, value in data.items() if name not in others}
    settings, faults = _validated(Document(data, document.lines, faults), path.parent)
    raise_for(faults, str(path), document.lines)
    return settings


def _from_file(path: Path, environ: Mapping[str, str], known: Mapping[str, Provider]) -> Settings:
    document = read_document(_content(path), environ)
    settings, faults = _validated(document, path.parent)
    settings = settings.model_copy(
        update={"providers": tuple(_with_usual_key(entry, environ, known) for entry in settings.providers)}
    )
    raise_for([*faults, *rule_faults(settings, known)], str(path), document.lines)
    if not settings.providers:
        settings = settings.model_copy(update={"providers": _providers_in(environ, known)})
        raise_for([*routing_faults(settings)], str(path), document.lines)
    return settings


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "no such path"
        raise ConfigInvalid(
            f"{path}: cannot be read: {reason}.", hint=f"Correct the path in --config or {FILE_VARIABLE}."
        ) from None


def _validated(document: Document, folder: Path) -> tuple[Settings, list[Fault]]:
    """The settings in a document, without the sections that have faults, and the faults."""
    if document.data is None and document.faults:
        return Settings(), document.faults
    context = {"folder": folder}
    try:
        settings, found = Settings.model_validate(document.data, context=context), []
    except ValidationError as error:
        found = from_validation(error, Settings)
        settings = Settings.model_validate(_without_sections(document.data, found), context=context)
    # A value with a fault in its text is missing here; a second fault about it would only confuse.
    reported = {fault.where for fault in document.faults}
    return settings, [*document.faults, *(fault for fault in found if not _within(fault.where, reported))]


def _without_sections(data: Value, faults: list[Fault]) -> dict[str, Value]:
    """The data without the sections that have faults, so that the rules between the others are checked as well."""
    bad = {fault.where[0] for fault in faults if fault.where}
    if "server" in bad:
        bad.add("metrics")  # a rule compares their ports
    if bad & {"teams", "keys", "attribution"}:
        bad.add("budgets")  # budgets refer to them
    return {name: value for name, value in data.items() if name not in bad} if isinstance(data, dict) else {}


def _within(where: Where, reported: Set[Where]) -> bool:
    return any(where[:steps] in reported for steps in range(1, len(where) + 1))


def _with_usual_key(
    entry: ProviderSettings, environ: Mapping[str, str], known: Mapping[str, Provider]
) -> ProviderSettings:
    """Adds the key of the usual variable, at the built-in address only: no other host may receive it by accident."""
    base = known.get(entry.type or entry.name)
    if entry.secrets or base is None or entry.base_url not in (None, base.base_url):
        return entry
    key = _key_in(environ, base)
    return entry.model_copy(update={"api_key": SecretStr(key)}) if key else entry


def _providers_in(environ: Mapping[str, str], known: Mapping[str, Provider]) -> tuple[ProviderSettings, ...]:
    usable = [provider for provider in known.values() if provider.base_url and provider.key_env]
    keys = {provider.name: _key_in(environ, provider) for provider in usable}
    if not any(keys.values()):
        variables = ", ".join(provider.key_env for provider in usable)
        raise ConfigInvalid(
            f"No provider is configured, and none of {variables} is set.",
            hint="Set one, for example: export OPENAI_API_KEY=...; or run: mcpmeter demo, which needs no key.",
        )
    return tuple(ProviderSettings(name=name, api_key=SecretStr(key)) for name, key in keys.items() if key)


def _key_in(environ: Mapping[str, str], provider: Provider) -> str:
    key = environ.get(provider.key_env, "").strip() if provider.key_env else ""
    if key and not sendable(key):
        raise ConfigInvalid(
            f"{provider.key_env} contains characters that no key has (blanks, control characters or non-ASCII).",
            hint="Set it again.",
        )
    return key
