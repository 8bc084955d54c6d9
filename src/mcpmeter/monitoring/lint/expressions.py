"""Rule files, PrometheusRules, dashboards and ConfigMaps of them: every expression and where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

from mcpmeter.monitoring.lint.finding import LintIssue

GONE_PANELS: Final = {
    "graph": "timeseries",
    "singlestat": "stat",
    "table-old": "table",
    "grafana-piechart-panel": "piechart",
}
RANGE: Final = re.compile(r"\[\s*\$\{?\w+\}?\s*(:[^\]]*)?\]")
VARIABLE: Final = re.compile(r"\$\{?\w+(:\w+)?\}?|\[\[\w+\]\]")
QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Asked:
    """One expression."""

    file: str
    place: str
    name: str
    kind: Literal["alert", "record", "panel"]
    expr: str
    """With a dashboard's variables filled in where PromQL has no place for them."""


def read(file: str, content: str) -> tuple[list[Asked], list[LintIssue]]:
    """All expressions of a file, and what is wrong with the file itself."""
    try:
        documents = _documents(content)
    except (yaml.YAMLError, ValueError) as fault:
        return [], [_broken(file, "unreadable", f"neither YAML nor JSON: {' '.join(str(fault).split())[:200]}")]
    asked: list[Asked] = []
    findings: list[LintIssue] = []
    for document in documents:
        if isinstance(document, dict):
            _read_document(file, document, asked, findings)
    if not asked and not findings:
        nothing = "no rule and no panel was found in this file"
        findings.append(_broken(file, "nothing-found", nothing, "Give rule files, PrometheusRules or dashboards."))
    return asked, findings


def _documents(content: str) -> list[Any]:
    return [json.loads(content)] if content.lstrip().startswith("{") else list(yaml.safe_load_all(content))


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    """Those of a list: a file may hold anything anywhere."""
    yield from (item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _broken(file: str, kind: str, message: str, hint: str = "") -> LintIssue:
    return LintIssue(file=file, place="file", level="error", kind=kind, message=message, hint=hint)


def _read_document(file: str, document: Mapping[str, Any], asked: list[Asked], findings: list[LintIssue]) -> None:
    kind = document.get("kind")
    if kind == "ConfigMap":
        for data in _mappings([document.get("data")]):
            for name, text in data.items():
                if str(name).endswith(".json"):
                    more_asked, more_findings = read(f"{file}#{name}", str(text))
                    asked.extend(more_asked)
                    findings.extend(more_findings)
    elif kind == "PrometheusRule":
        asked.extend(rule for spec in _mappings([document.get("spec")]) for rule in _rules(file, spec))
    elif "groups" in document:
        asked.extend(_rules(file, document))
    elif isinstance(document.get("dashboard"), dict):
        findings.append(_broken(file, "wrapped-dashboard", _WRAPPED, 'Put what is under "dashboard" at the top.'))
        _read_dashboard(file, document["dashboard"], asked, findings)
    elif "panels" in document or "schemaVersion" in document:
        _read_dashboard(file, document, asked, findings)


_WRAPPED: Final = (
    'wrapped in {"dashboard": …}, as the HTTP API takes it: file provisioning says that the title is empty'
)


def _rules(file: str, holder: Mapping[str, Any]) -> Iterator[Asked]:
    for group in _mappings(holder.get("groups")):
        for rule in _mappings(group.get("rules")):
            kind: Literal["alert", "record"] = "alert" if "alert" in rule else "record"
            name = str(rule.get(kind, "?"))
            yield Asked(file, f"{kind} {name}", name, kind, str(rule.get("expr", "")))


def _read_dashboard(file: str, dashboard: Mapping[str, Any], asked: list[Asked], findings: list[LintIssue]) -> None:
    findings.extend(_of_dashboard(file, dashboard))
    for panel in _panels(dashboard):
        place = f"panel {panel.get('title') or panel.get('id', '?')}"
        findings.extend(_of_panel(file, place, panel))
        for target in _mappings(panel.get("targets")):
            if target.get("expr"):
                asked.append(Asked(file, place, place, "panel", filled_in(str(target["expr"]))))


def _panels(holder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for row in _mappings(holder.get("rows")):
        yield from _panels(row)
    for panel in _mappings(holder.get("panels")):
        yield panel
        yield from _panels(panel)


def _of_dashboard(file: str, dashboard: Mapping[str, Any]) -> Iterator[LintIssue]:
    missing = {
        "title": "file provisioning refuses a dashboard without a title",
        "uid": "without a uid each provisioning makes a new address, and links to it break",
        "schemaVersion": "without a schemaVersion Grafana takes it for the oldest and migrates it by guesses",
    }
    for key, why in missing.items():
        if not dashboard.get(key):
            yield _broken(file, f"no-{key}", f"the dashboard has no {key}: {why}", f'Add "{key}".')


def _of_panel(file: str, place: str, panel: Mapping[str, Any]) -> Iterator[LintIssue]:
    kind = str(panel.get("type"))
    if kind in GONE_PANELS:
        yield LintIssue(
            file=file,
            place=place,
            level="error",
            kind="gone-panel",
            message=f"panels of type '{kind}' are gone from Grafana",
            hint=f"Use '{GONE_PANELS[kind]}'.",
        )
    targets = list(_mappings(panel.get("targets")))
    if targets and not panel.get("datasource") and not all(target.get("datasource") for target in targets):
        yield LintIssue(
            file=file,
            place=place,
            level="warning",
            kind="no-datasource",
            message="the panel names no data source, so that it asks whichever is the default",
            hint='Add "datasource": {"type": "prometheus", "uid": "…"}.',
        )


def filled_in(expr: str) -> str:
    """A panel's query as PromQL: ranges and numbers in the place of variables; those in quotes stay."""
    expr = RANGE.sub("[5m]", expr)
    pieces, at = [], 0
    for quoted in QUOTED.finditer(expr):
        pieces += [VARIABLE.sub("1", expr[at : quoted.start()]), quoted[0]]
        at = quoted.end()
    return "".join([*pieces, VARIABLE.sub("1", expr[at:])])
