"""A statement as a printable page and as CSV. The page is one file without scripts; every name in it is escaped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from decimal import Decimal
from html import escape
from typing import Final

from mcpmeter.ledger.maintenance.export import formula_safe
from mcpmeter.ledger.queries.totals import Total
from mcpmeter.money import usd_text
from mcpmeter.usage.periods import utc_text
from mcpmeter.usage.report import summed
from mcpmeter.usage.statement import Line, Statement

DOUBTS: Final = {
    "estimated_calls": "calls whose tokens the relay estimated, because the provider did not report them",
    "partial_calls": "interrupted calls; what was delivered is charged, by estimate",
    "missing_calls": "calls whose tokens are unknown; they cost nothing here",
    "unpriced_calls": "calls of models without a price; they are in no amount",
    "unpriced_item_calls": "calls with an item without a price; only their other items are in the amounts",
    "fallback_calls": "calls of which budgets count what has no price at the fallback price",
    "open_calls": "calls that are not settled; they are in no amount",
}
CSV_COLUMNS: Final = ("kind", "team", "project", "model", "calls", "prompt_tokens", "completion_tokens", "cost_nanousd")
_STYLE: Final = """
body { font: 10pt/1.4 system-ui, sans-serif; color: #111; margin: 2rem auto; max-width: 60rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 1.5rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .2rem .5rem; text-align: right; }
th { border-bottom: 1px solid #111; } td { font-variant-numeric: tabular-nums; }
th.name, td.name { text-align: left; overflow-wrap: anywhere; }
tr.sum td { border-top: 1px solid #999; font-weight: 600; }
tr.total td { border-top: 2px solid #111; font-weight: 700; }
tr { break-inside: avoid; } thead { display: table-header-group; } .small { color: #444; font-size: 9pt; }
@page { margin: 15mm; } @media print { body { margin: 0; max-width: none; } }
"""


def statement_csv(statement: Statement) -> str:
    """A header, one row per line, and the row `total`, which is their sum."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    currency = [f"amount_{statement.currency.code.lower()}"] if statement.currency else []
    rows.writerow([*CSV_COLUMNS, "cost_usd", *currency, *DOUBTS])
    for line in statement.lines:
        names = [formula_safe(name) for name in (line.team, line.project, line.model)]
        rows.writerow(["line", *names, *_csv_figures(line.figures, line.amount)])
    rows.writerow(["total", "", "", "", *_csv_figures(statement.total, statement.total_amount)])
    return text.getvalue()


def _csv_figures(total: Total, amount: Decimal | None) -> list[object]:
    figures = [total.calls, total.prompt_tokens, total.completion_tokens, total.cost_nanousd]
    amounts = [usd_text(total.cost_nanousd), *([f"{amount:f}"] if amount is not None else [])]
    return [*figures, *amounts, *(getattr(total, name) for name in DOUBTS)]


def statement_html(statement: Statement) -> str:
    """One HTML file for the browser and the printer."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(statement.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(statement.title)}</h1>\n<p>{escape(_about(statement))}</p>",
            *(part for team, lines in statement.by_team() for part in _team_table(statement, team, lines)),
            *_total_table(statement),
            *_notes(statement),
            "</body>\n</html>\n",
        ]
    )


def _about(statement: Statement) -> str:
    since, until = map(utc_text, statement.span)
    teams = f"of team {statement.team}" if statement.team is not None else "of all teams"
    return f"Calls started at or after {since} and before {until} ({statement.zone}), {teams}."


def _team_table(statement: Statement, team: str, lines: Sequence[Line]) -> Iterator[str]:
    yield f"<h2>Team {escape(team or '(none)')}</h2>\n<table>"
    yield _head(statement, ("project", "model"))
    yield "<tbody>"
    for project in dict.fromkeys(line.project for line in lines):
        of_project = [line for line in lines if line.project == project]
        for line in of_project:
            yield _row(statement, (line.project or "-", line.model or "-"), line.figures, line.amount)
        if len(of_project) < len(lines):
            yield _sum_row(statement, (f"project {project or '-'}", ""), of_project, "sum")
    yield _sum_row(statement, (f"team {team or '(none)'}", ""), lines, "sum")
    yield "</tbody>\n</table>"


def _total_table(statement: Statement) -> Iterator[str]:
    yield "<h2>Total</h2>\n<table>"
    yield _head(statement, ("team", ""))
    yield "<tbody>"
    for team, lines in statement.by_team():
        yield _sum_row(statement, (team or "(none)", ""), lines, "")
    yield _row(statement, ("total", ""), statement.total, statement.total_amount, "total")
    yield "</tbody>\n</table>"


def _head(statement: Statement, names: Sequence[str]) -> str:
    columns = ["calls", "prompt tokens", "completion tokens", "in doubt", "USD"]
    columns += [statement.currency.code] if statement.currency else []
    cells = [f'<th class="name">{name}</th>' for name in names] + [f"<th>{escape(name)}</th>" for name in columns]
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _sum_row(statement: Statement, names: Sequence[str], lines: Sequence[Line], kind: str) -> str:
    amount = sum((line.amount for line in lines if line.amount is not None), Decimal(0))
    return _row(statement, names, summed(line.figures for line in lines), amount, kind)


def _row(statement: Statement, names: Sequence[str], total: Total, amount: Decimal | None, kind: str = "") -> str:
    figures = [f"{total.calls:,}", f"{total.prompt_tokens:,}", f"{total.completion_tokens:,}", f"{in_doubt(total):,}"]
    figures += [usd_text(total.cost_nanousd)]
    figures += [f"{amount:,.2f}"] if statement.currency and amount is not None else []
    cells = [f'<td class="name">{escape(name)}</td>' for name in names] + [f"<td>{cell}</td>" for cell in figures]
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def in_doubt(total: Total) -> int:
    """Settled calls with unreported tokens or without a price of all they used; a call with both counts twice."""
    tokens = total.estimated_calls + total.partial_calls + total.missing_calls
    return tokens + total.unpriced_calls + total.unpriced_item_calls


def _notes(statement: Statement) -> Iterator[str]:
    total = statement.total
    doubts = [f"{getattr(total, name):,} {text}." for name, text in DOUBTS.items() if getattr(total, name)]
    doubts += [
        f"Without a price: {item.item}, {item.quantity:,} in {item.occurrences:,} lines." for item in statement.unpriced
    ]
    yield '<h2>Sources of the numbers</h2>\n<ul class="small">'
    yield from (f"<li>{escape(text)}</li>" for text in [*doubts, *_rules(statement)])
    yield "</ul>"


def _rules(statement: Statement) -> Iterator[str]:
    total = statement.total
    reported = total.cost_nanousd - total.listed_cost_nanousd
    yield (
        f"Of the total, {usd_text(total.listed_cost_nanousd)} USD are computed from dated price lists, "
        f"{usd_text(reported)} USD are reported by providers."
    )
    yield "US dollars are exact to the nano-dollar; nothing is rounded, and the lines add up to the total."
    if statement.currency is not None:
        yield (
            f"{statement.currency.code} at {statement.currency.rate:f} per USD. The total is rounded to 0.01, half "
            "to even; the lines are rounded by largest remainder, so that they add up to it."
        )
