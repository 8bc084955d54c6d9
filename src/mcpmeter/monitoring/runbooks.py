"""docs/runbooks/, a page for each alert and an index: `python -m mcpmeter.monitoring.runbooks docs/runbooks`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpmeter.monitoring.alert import Alert
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.options import MonitoringOptions

MADE: Final = "<!-- Made by `python -m mcpmeter.monitoring.runbooks`; a test holds it equal to the alert's file. -->"
SEVERITIES: Final = {
    "critical": "critical: somebody is woken",
    "warning": "warning: within the day",
    "info": "info: look at it some time",
    "none": "none: the dead man's switch",
}
AREAS: Final = {
    "slo": "What callers feel",
    "upstreams": "Providers",
    "money": "Money",
    "quality": "Quality of answers",
    "meter": "The meter itself",
}


def pages() -> dict[str, str]:
    """File name -> Markdown, with every number at its default."""
    made = alerts(MonitoringOptions())
    return {"README.md": _index(made), **{f"{alert.name}.md": _page(alert) for alert in made}}


def _index(made: tuple[Alert, ...]) -> str:
    lines = [
        "# Runbooks\n",
        f"{MADE}\n",
        "One page for each alert of `mcpmeter monitoring write`: what it means, what to look at, what to do. "
        "[docs/monitoring.md](../monitoring.md) says how they are set up.\n",
    ]
    for area, title in AREAS.items():
        lines += [f"## {title}\n", "| alert | severity | what it says |", "| --- | --- | --- |"]
        lines += [
            f"| [{a.name}]({a.name}.md) | {_severities(a)} | {_plain(a.summary)} |" for a in made if a.area == area
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _severities(alert: Alert) -> str:
    return ", ".join(dict.fromkeys(rule.severity for rule in alert.rules))


def _plain(text: str) -> str:
    return text.replace("{{ $labels.", "*").replace(" }}", "*")


def _page(alert: Alert) -> str:
    return "\n".join(_lines(alert)).rstrip() + "\n"


def _lines(alert: Alert) -> Iterator[str]:
    yield f"# {alert.name}\n"
    yield f"{MADE}\n"
    yield f"> {_plain(alert.summary)}\n"
    yield f"{alert.runbook.means}\n"
    yield f"**Whose fault it mostly is.** {alert.runbook.fault}\n"
    yield "## Look at\n"
    for check in alert.runbook.check:
        yield f"{check.what}:\n"
        yield f"```promql\n{check.query}\n```\n"
    yield "## Do\n"
    yield from (f"- {step}" for step in alert.runbook.do)
    yield "\n## When it fires\n"
    for rule in alert.rules:
        held = f", for {rule.hold}" if rule.hold else ""
        own = "".join(f", {name}: {value}" for name, value in rule.labels.items())
        yield f"{SEVERITIES[rule.severity]}{held}{own}\n"
        yield f"```promql\n{rule.expr}\n```\n"
    yield from _parameters(alert)
    yield from _cases(alert)


def _parameters(alert: Alert) -> Iterator[str]:
    if not alert.parameters:
        return
    yield f"Numbers that may be set under `monitoring.thresholds.{alert.name}`:\n"
    yield "| name | default | what |"
    yield "| --- | ---: | --- |"
    yield from (f"| `{p.name}` | {p.default} | {p.what} |" for p in alert.parameters)
    yield ""


def _cases(alert: Alert) -> Iterator[str]:
    yield f"Tried by `promtool test rules deploy/prometheus/tests/{alert.name}.test.yml`:\n"
    for case in alert.cases:
        yield f"- {'fires' if case.firing else 'is silent'}: {case.title}"


def main(folder: Path) -> None:
    """Write the pages, and take away those of alerts that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
