"""`mcpmeter calls`: single calls of the ledger, with their charges line by line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpmeter.cli._options import config_option, json_option, ledger_at, ledger_option
from mcpmeter.cli._tables import print_rows, printable

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location
    from mcpmeter.usage.call_view import ShownCall, ShownLine


@click.group(name="calls")
def command() -> None:
    """Show single calls of the ledger. A service may keep writing to it.

    \b
    Example:
      mcpmeter calls show call_019a2b3c4d5e
    """


@command.command()
@click.argument("call_id")
@config_option
@ledger_option
@json_option()
def show(call_id: str, config_path: Path | None, ledger: Location | None, as_json: bool) -> int:
    """Show one call: tokens, cost, and each line of its charge with quantity, unit price, list and date.

    The id is in the response's header x-mcpmeter-call-id. Exit code 1: the ledger has no such call, or only its sums.

    \b
    Example:
      mcpmeter calls show call_019a2b3c4d5e
      mcpmeter calls show call_019a2b3c4d5e --json | jq .lines
    """
    import msgspec

    from mcpmeter.usage.call_view import call_view

    call = call_view(ledger_at(ledger, config_path), call_id)
    if call is None:
        click.echo("The ledger has no call with this id, or keeps only sums of it since a prune.", err=True)
        return 1
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(call), indent=2).decode())
        return 0
    _print(call)
    return 0


def _print(call: ShownCall) -> None:
    for name, value in _figures(call).items():
        if value:
            click.echo(f"{name:<18} {printable(value)}")
    lines = [*call.lines, *call.unpriced_items]
    if lines:
        click.echo()
        print_rows([_row(line) for line in lines], right=("quantity", "USD"))


def _figures(call: ShownCall) -> dict[str, str]:
    parts = ("cached_read", "cache_write", "reasoning", "audio")
    details = [f"{getattr(call, f'{part}_tokens'):,} {part}" for part in parts if getattr(call, f"{part}_tokens")]
    tokens = f"{call.prompt_tokens:,} prompt, {call.completion_tokens:,} completion"
    if call.token_source:
        tokens += f", {call.token_source}" + (f" (among them {', '.join(details)})" if details else "")
    cost = f"${call.cost_usd}, {call.cost_source}" if call.cost_usd is not None else call.cost_source
    return {
        "call": call.id,
        "started": call.started_at or "",
        "ended": call.ended_at or "open",
        "caller": ", ".join(filter(None, (f"team {call.team or '-'}", call.project, call.key_id))),
        "model": " ".join(filter(None, (call.provider, call.model))),
        "answered by": call.response_model,
        "status": " ".join(filter(None, (call.status, call.outcome, call.error_id, call.finish_reason))),
        "tokens": tokens,
        "conditions": ", ".join(f"{name} {value}" for name, value in call.conditions.items()),
        "cost": cost + (f" by {call.price_list}" if call.price_list else ""),
        "reported cost": f"${call.reported_cost_usd}" if call.reported_cost_usd is not None else "",
        "budgets also count": f"${call.fallback_cost_usd}" if call.fallback_cost_usd != "0.00" else "",
        "provider's id": call.upstream_request_id,
    }


def _row(line: ShownLine) -> dict[str, str]:
    return {
        "item": printable(line.item),
        "quantity": f"{line.quantity:,}",
        "unit price": line.unit_price,
        "USD": "no price" if line.cost_usd is None else line.cost_usd,
        "list": line.price_list,
        "source": line.source,
        "model": line.model,
    }
