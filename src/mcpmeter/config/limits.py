"""Converts settings to budgets, and the rules between budgets, keys and teams."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from mcpmeter.access.callers import Attribution
from mcpmeter.access.keys import key_from_config
from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.period import Period
from mcpmeter.config.budgets import BudgetSettings
from mcpmeter.config.faults import Fault, nearest
from mcpmeter.config.keys import KeySettings
from mcpmeter.config.settings import Settings
from mcpmeter.records import Scope

KEY_ID: Final = re.compile(r"key_[0-9a-f]{12}")
"""IDs of keys in the ledger, which the configuration does not read."""


def budgets_of(settings: Settings) -> Budgets:
    """The configured budgets, in their order."""
    return Budgets(_budget(entry, settings) for entry in settings.budgets)


def attribution_of(settings: Settings) -> Attribution | None:
    """The header that names a call's project; None if no project is configured."""
    attribution = settings.attribution
    return Attribution(header=attribution.header, values=attribution.values) if attribution.values else None


def _budget(entry: BudgetSettings, settings: Settings) -> Budget:
    zone = entry.time_zone or next((team.time_zone for team in settings.teams if team.name == entry.team), "UTC")
    return Budget(
        name=entry.name,
        scope=Scope(
            team=entry.team or "",
            project=entry.project or "",
            key_id=_key_id(entry.key, settings.keys),
            model=entry.model or "",
        ),
        limit_nanousd=int(entry.limit_usd.scaleb(9)),
        period=Period(entry.period, zone, entry.start_day or 1, entry.start_ns(zone)),
        soft_shares=tuple(sorted(entry.soft)),
        refuses=entry.hard,
    )


def _key_id(name: str | None, keys: Sequence[KeySettings]) -> str:
    key = next((key for key in keys if key.name == name), None)
    return key_from_config(name=key.name, team=key.team, sha256=key.digest).id if key else name or ""


def budget_faults(settings: Settings) -> Iterator[Fault]:
    """Budgets that match no call or the same calls: unknown names, contradictory scopes, duplicates."""
    for index, entry in enumerate(settings.budgets):
        for part, sentence in _unknown_parts(entry, settings):
            yield Fault(("budgets", index, part), f"'budgets[{index}].{part}' {sentence}")
    yield from _duplicate_faults(settings)


def project_faults(settings: Settings) -> Iterator[Fault]:
    """Keys for projects that their team does not list, if the team lists any."""
    projects = {team.name: team.projects for team in settings.teams}
    for index, key in enumerate(settings.keys):
        known = projects.get(key.team, ())
        if key.project is not None and known and key.project not in known:
            sentence = f"is '{key.project}', which is not in 'projects' of team '{key.team}'"
            name = f"'keys[{index}].project'"
            yield Fault(("keys", index, "project"), f"{name} {sentence}{nearest(key.project, known)}")


def _unknown_parts(entry: BudgetSettings, settings: Settings) -> Iterator[tuple[str, str]]:
    teams = [team.name for team in settings.teams]
    if entry.team is not None and teams and entry.team not in teams:
        yield "team", f"is '{entry.team}', which is not in 'teams'{nearest(entry.team, teams)}"
        return
    if entry.project is not None:
        yield from _unknown_project(entry.project, entry.team, settings)
    if entry.key is not None:
        yield from _unknown_key(entry.key, entry.team, settings)
    if entry.model is not None:
        yield from _unknown_model(entry.model, settings)


def _unknown_project(project: str, team: str | None, settings: Settings) -> Iterator[tuple[str, str]]:
    of_teams = [name for entry in settings.teams if team in (None, entry.name) for name in entry.projects]
    of_keys = [key.project for key in settings.keys if key.project and team in (None, key.team)]
    known = list(dict.fromkeys([*of_teams, *of_keys, *settings.attribution.values]))
    if project in known:
        return
    section = f"'projects' of team '{team}'" if team else "'projects' of a team"
    advice = nearest(project, known) if known else "; add it there"
    yield "project", f"is '{project}', which is in no {section} and not in 'attribution.values'{advice}"


def _unknown_key(name: str, team: str | None, settings: Settings) -> Iterator[tuple[str, str]]:
    keys = {key.name: key for key in settings.keys}
    if name in keys:
        if team not in (None, keys[name].team):
            yield "key", f"is a key of team '{keys[name].team}', not of '{team}'; remove one of the two"
    elif not KEY_ID.fullmatch(name):
        advice = nearest(name, keys) if keys else ""
        yield "key", f"is no key's name in 'keys' and no id such as key_0123456789ab{advice}"


def _unknown_model(name: str, settings: Settings) -> Iterator[tuple[str, str]]:
    provider, _, model = name.partition("/")
    if name in settings.aliases:
        model = settings.aliases[name].partition("/")[2]
        yield "model", f"is an alias; name the model that it stands for: '{model}'"
    elif model and provider in [entry.name for entry in settings.providers]:
        yield "model", f"names the provider too; write only '{model}'"


def _duplicate_faults(settings: Settings) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for index, entry in enumerate(settings.budgets):
        first = seen.setdefault(_budget(entry, settings).balance, index)
        if first != index:
            sentence = f"'budgets[{index}]' has the scope and period of 'budgets[{first}]'; keep one of them"
            yield Fault(("budgets", index), sentence)
