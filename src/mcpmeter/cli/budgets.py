"""`mcpmeter budgets`: the status of budgets, and top-ups of prepaid ones. A service may run on the same ledger."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mcpmeter.cli._options import config_faults_as_usage_errors, config_option, json_option, ledger_option
from mcpmeter.cli._tables import print_rows
from mcpmeter.errors import SetupError

if TYPE_CHECKING:
    from mcpmeter.budgets.budget import Budget
    from mcpmeter.budgets.view import ShownBudget
    from mcpmeter.config import Settings
    from mcpmeter.ledger.location import Location
    from mcpmeter.ledger.queries.budget_history import BudgetHistory

_AMOUNT: Final = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_json_option = json_option("Print one JSON object; amounts are strings.")


class Dollars(click.ParamType[int]):
    """An amount in US dollars, exact to the nano-dollar, may be negative. Converted to nano-dollars."""

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Called by click with the option's text."""
        if not _AMOUNT.fullmatch(str(value)) or not (nanousd := int(Decimal(str(value)).scaleb(9))):
            self.fail(f"{value!a} is no amount. Write for example 50 or 12.50, at most nine decimals.", param, ctx)
        return nanousd


@click.group(name="budgets")
def command() -> None:
    """Show the status of the configured budgets, and top up prepaid ones.

    Needs the service's configuration, environment and ledger.

    \b
    Example:
      mcpmeter budgets list
      mcpmeter budgets show search-monthly
      mcpmeter budgets top-up support-credit --usd 50 --note 'invoice 7'
    """


@command.command("list")
@config_option
@ledger_option
@_json_option
def list_(config_path: Path | None, ledger: Location | None, as_json: bool) -> None:
    """List all budgets: spent, reserved, left, when they reset and when they will be exhausted.

    \b
    Example:
      mcpmeter budgets list
      mcpmeter budgets list --json | jq -r '.budgets[] | select(.exhausted_at != null) | .name'
    """
    import msgspec

    from mcpmeter.budgets.period import Period
    from mcpmeter.budgets.view import BudgetReport

    settings = _settings(config_path)
    now_ns = time.time_ns()
    budgets = [budget for budget, _ in _statuses(settings, ledger, now_ns)]
    if as_json:
        report = BudgetReport(at=Period("day").local_time(now_ns), budgets=budgets)
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    elif budgets:
        _print_list(budgets)
    else:
        click.echo(f"No budget is configured in {settings.source}. See docs/budgets.md.", err=True)


@command.command()
@click.argument("name")
@config_option
@ledger_option
@_json_option
def show(name: str, config_path: Path | None, ledger: Location | None, as_json: bool) -> None:
    """Show one budget with its previous periods and its top-ups.

    \b
    Example:
      mcpmeter budgets show support-credit
    """
    import msgspec

    settings = _settings(config_path)
    _find(settings, name)
    budget, history = next(pair for pair in _statuses(settings, ledger, time.time_ns()) if pair[0].name == name)
    details = {
        "budget": msgspec.to_builtins(budget),
        "periods": [_period(budget, balance) for balance in history.periods],
        "top_ups": [_top_up(budget, top_up) for top_up in history.top_ups],
    }
    if as_json:
        click.echo(json.dumps(details, indent=2))
    else:
        _print_one(details)


@command.command("top-up")
@click.argument("name")
@click.option("--usd", "nanousd", type=Dollars(), required=True, help="The amount; a negative one reduces the credit.")
@click.option("--note", default="", help="What it is for, such as an invoice number.")
@config_option
@ledger_option
@_json_option
def top_up(
    *, name: str, nanousd: int, note: str, config_path: Path | None, ledger: Location | None, as_json: bool
) -> None:
    """Add to the credit of a prepaid budget (`period: once`). The ledger records each top-up.

    \b
    Example:
      mcpmeter budgets top-up support-credit --usd 50 --note 'invoice 7'
    """
    from mcpmeter.cli._actor import this_user
    from mcpmeter.ledger.queries.budget_history import add_top_up
    from mcpmeter.money import format_usd, usd_text
    from mcpmeter.records import TopUp

    settings = _settings(config_path)
    budget = _find(settings, name)
    if budget.period.kind != "once":
        raise SetupError(
            f"The budget '{name}' resets each {budget.period.kind}; only a prepaid one can be topped up.",
            hint=f"Raise 'limit_usd' of '{name}' under 'budgets' instead, and reload the service.",
        )
    if len(note) > 500 or not note.isprintable():
        raise click.UsageError("--note takes one line of at most 500 printable characters.")
    record = TopUp(
        id=f"top_{secrets.token_hex(6)}",
        balance=budget.balance,
        amount_nanousd=nanousd,
        at_ns=time.time_ns(),
        note=note,
    )
    credit = add_top_up(ledger or settings.ledger.location, record, budget=name, by=this_user())
    if as_json:
        amounts = {"amount_usd": usd_text(nanousd), "credit_usd": usd_text(credit)}
        click.echo(json.dumps({"id": record.id, "budget": name, **amounts, "note": note}))
    else:
        click.echo(f"{record.id}: {format_usd(nanousd)} to '{name}'; total of its top-ups: {format_usd(credit)}.")


def _settings(config_path: Path | None) -> Settings:
    from mcpmeter.config import find_file, load

    with config_faults_as_usage_errors():
        return load(find_file(config_path, os.environ), os.environ)


def _find(settings: Settings, name: str) -> Budget:
    from mcpmeter.config import budgets_of
    from mcpmeter.config.faults import nearest

    budgets = {budget.name: budget for budget in budgets_of(settings)}
    if name not in budgets:
        advice = nearest(name, budgets) if budgets else "; none is"
        raise SetupError(f"No budget '{name[:64]!s}' is configured in {settings.source}{advice}.")
    return budgets[name]


def _statuses(settings: Settings, option: Location | None, now_ns: int) -> list[tuple[ShownBudget, BudgetHistory]]:
    """The status and the history of every budget, from the ledger."""
    from mcpmeter.budgets.forecast import burn_since_ns, status_of
    from mcpmeter.budgets.view import shown_budget
    from mcpmeter.config import budgets_of
    from mcpmeter.ledger.queries.budget_history import read_histories

    current = budgets_of(settings).current(now_ns)
    if not current:
        return []
    queries = [(reservation, burn_since_ns(reservation.period_start_ns, now_ns)) for _, reservation in current]
    histories = read_histories(option or settings.ledger.location, queries, now_ns)
    return [
        (shown_budget(status_of(budget, history.balance, history.burned_nanousd, now_ns)), history)
        for (budget, _), history in zip(current, histories, strict=True)
    ]


def _period(budget: ShownBudget, balance: Any) -> dict[str, str | None]:
    from mcpmeter.budgets.period import Period
    from mcpmeter.money import usd_text

    zone, end_ns = Period("day", budget.time_zone), balance.period_end_ns
    return {
        "start": zone.local_time(balance.period_start_ns).isoformat(),
        "end": zone.local_time(end_ns).isoformat() if end_ns else None,
        "spent_usd": usd_text(balance.spent),
    }


def _top_up(budget: ShownBudget, top_up: Any) -> dict[str, str]:
    from mcpmeter.budgets.period import Period
    from mcpmeter.money import usd_text

    return {
        "id": top_up.id,
        "at": Period("day", budget.time_zone).local_time(top_up.at_ns).isoformat(),
        "amount_usd": usd_text(top_up.amount_nanousd),
        "note": top_up.note,
    }


def _print_list(budgets: list[ShownBudget]) -> None:
    rows = [
        {
            "budget": budget.name,
            "for": _scope(budget),
            "spent": budget.spent_usd,
            "reserved": budget.reserved_usd,
            "left": budget.left_usd,
            "of": _total(budget),
            "beyond": "refused" if budget.hard else "warned",
            "resets": str(budget.resets_at or "never"),
            "exhausted": _exhausted(budget),
        }
        for budget in budgets
    ]
    print_rows(rows, {"spent", "reserved", "left", "of"})


def _scope(budget: ShownBudget) -> str:
    parts = {"team": budget.team, "project": budget.project, "key": budget.key_id, "model": budget.model}
    return " ".join(f"{part}={value}" for part, value in parts.items() if value) or "all calls"


def _total(budget: ShownBudget) -> str:
    return f"{budget.limit_usd} + {budget.credit_usd}" if Decimal(budget.credit_usd) else budget.limit_usd


def _exhausted(budget: ShownBudget) -> str:
    """The forecast, if it is before the budget resets; a later one is irrelevant."""
    at, resets_at = budget.exhausted_at, budget.resets_at
    if at is None:
        return "no spending"
    if resets_at is not None and at >= resets_at:
        return "not before it resets"
    return "now" if Decimal(budget.left_usd) <= 0 else f"{at:%Y-%m-%d %H:%M}"


def _print_one(details: dict[str, Any]) -> None:
    budget = details["budget"]
    width = max(map(len, budget))
    for name, value in budget.items():
        click.echo(f"{name:<{width}}  {'-' if value in ('', None) else value}")
    for title, rows in (("Periods", details["periods"]), ("Top-ups", details["top_ups"])):
        if rows:
            click.echo(f"\n{title}")
            print_rows(rows, {"spent_usd", "amount_usd"})
