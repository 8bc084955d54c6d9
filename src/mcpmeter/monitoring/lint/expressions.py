"""Reads rule files, PrometheusRules, dashboards and ConfigMaps of them: every expression and its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import yaml

REMOVED_PANELS: Final = {
    "graph": "timeseries",
    "singlestat": "stat",
    "table-old": "table",
    "grafana-piechart-panel": "piechart",
}
RANGE: Final = re.compile(r"\[\s*\$\{?\w+\}?\s*(:[^\]]*)?\]")
VARIABLE: Final = re.compile(r"\$\{?\w+(:\w+)?\}?|\[\[\w+\]\]")
QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


class LintIssue(msgspec.Struct, frozen=True, kw_only=True):
    """One defect: its place, level and kind, its effect, and what to write instead."""

    file: str
    place: str
    """The name of the alert, rule or panel."""
    level: Literal["error", "warning"]
    """error: it never matches, cannot be loaded, or means something other than it seems; warning: it misleads."""
    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Expression:
    """One PromQL expression of a rule or panel."""

    file: str
    place: str
    name: str
    kind: Literal["alert", "record", "panel"]
    expr: str
    """PromQL, with values in place of a dashboard's variables outside of quotes."""


def read(file: str, content: str) -> tuple[list[Expression], list[LintIssue]]:
    """All expressions of a file, and the issues of the file itself."""
    try:
        documents = _documents(content)
    except (yaml.YAMLError, ValueError) as fault:
        return [], [
            _file_issue(file, "unreadable", f"neither valid YAML nor JSON: {' '.join(str(fault).split())[:200]}")
        ]
    expressions: list[Expression] = []
    issues: list[LintIssue] = []
    for document in documents:
        if isinstance(document, dict):
            _read_document(file, document, expressions, issues)
    if not expressions and not issues:
        nothing = "the file contains no rule and no panel"
        issues.append(_file_issue(file, "nothing-found", nothing, "Pass rule files, PrometheusRules or dashboards."))
    return expressions, issues


def _documents(content: str) -> list[Any]:
    return [json.loads(content)] if content.lstrip().startswith("{") else list(yaml.safe_load_all(content))


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    """The mappings in a list; nothing for any other value, since a file may contain any type anywhere."""
    yield from (item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _file_issue(file: str, kind: str, message: str, hint: str = "") -> LintIssue:
    return LintIssue(file=file, place="file", level="error", kind=kind, message=message, hint=hint)


def _read_document(
    file: str, document: Mapping[str, Any], expressions: list[Expression], issues: list[LintIssue]
) -> None:
    kind = document.get("kind")
    if kind == "ConfigMap":
        for data in _mappings([document.get("data")]):
            for name, text in data.items():
                if str(name).endswith(".json"):
                    inner, inner_issues = read(f"{file}#{name}", str(text))
                    expressions.extend(inner)
                    issues.extend(inner_issues)
    elif kind == "PrometheusRule":
        expressions.extend(rule for spec in _mappings([document.get("spec")]) for rule in _rules(file, spec))
    elif "groups" in document:
        expressions.extend(_rules(file, document))
    elif isinstance(document.get("dashboard"), dict):
        issues.append(
            _file_issue(file, "wrapped-dashboard", _WRAPPED, 'Move the content of "dashboard" to the top level.')
        )
        _read_dashboard(file, document["dashboard"], expressions, issues)
    elif "panels" in document or "schemaVersion" in document:
        _read_dashboard(file, document, expressions, issues)


_WRAPPED: Final = 'wrapped in {"dashboard": …} as for the HTTP API: file provisioning fails with an empty title'


def _rules(file: str, holder: Mapping[str, Any]) -> Iterator[Expression]:
    for group in _mappings(holder.get("groups")):
        for rule in _mappings(group.get("rules")):
            kind: Literal["alert", "record"] = "alert" if "alert" in rule else "record"
            name = str(rule.get(kind, "?"))
            yield Expression(file, f"{kind} {name}", name, kind, str(rule.get("expr", "")))


def _read_dashboard(
    file: str, dashboard: Mapping[str, Any], expressions: list[Expression], issues: list[LintIssue]
) -> None:
    issues.extend(_of_dashboard(file, dashboard))
    for panel in _panels(dashboard):
        place = f"panel {panel.get('title') or panel.get('id', '?')}"
        issues.extend(_of_panel(file, place, panel))
        for target in _mappings(panel.get("targets")):
            if target.get("expr"):
                expressions.append(Expression(file, place, place, "panel", fill_variables(str(target["expr"]))))


def _panels(holder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for row in _mappings(holder.get("rows")):
        yield from _panels(row)
    for panel in _mappings(holder.get("panels")):
        yield panel
        yield from _panels(panel)


def _of_dashboard(file: str, dashboard: Mapping[str, Any]) -> Iterator[LintIssue]:
    missing = {
        "title": "file provisioning rejects a dashboard without a title",
        "uid": "each provisioning creates a new URL, and links break",
        "schemaVersion": "Grafana assumes the oldest schema and migrates from it",
    }
    for key, why in missing.items():
        if not dashboard.get(key):
            yield _file_issue(file, f"no-{key}", f"the dashboard has no {key}: {why}", f'Add "{key}".')


def _of_panel(file: str, place: str, panel: Mapping[str, Any]) -> Iterator[LintIssue]:
    kind = str(panel.get("type"))
    if kind in REMOVED_PANELS:
        yield LintIssue(
            file=file,
            place=place,
            level="error",
            kind="gone-panel",
            message=f"Grafana has removed panels of type '{kind}'",
            hint=f"Use '{REMOVED_PANELS[kind]}'.",
        )
    targets = list(_mappings(panel.get("targets")))
    if targets and not panel.get("datasource") and not all(target.get("datasource") for target in targets):
        yield LintIssue(
            file=file,
            place=place,
            level="warning",
            kind="no-datasource",
            message="the panel has no data source and uses the default one",
            hint='Add "datasource": {"type": "prometheus", "uid": "…"}.',
        )


def fill_variables(expr: str) -> str:
    """A panel's query as PromQL: ranges and numbers replace variables, except in quotes."""
    expr = RANGE.sub("[5m]", expr)
    pieces, at = [], 0
    for quoted in QUOTED.finditer(expr):
        pieces += [VARIABLE.sub("1", expr[at : quoted.start()]), quoted[0]]
        at = quoted.end()
    return "".join([*pieces, VARIABLE.sub("1", expr[at:])])
