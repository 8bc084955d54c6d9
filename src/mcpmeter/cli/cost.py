"""`mcpmeter cost`: compares and estimates costs from the price lists."""

from __future__ import annotations

import json
import re
import time
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Final

import click

from mcpmeter.cli._options import check_currency, currency_options, json_option
from mcpmeter.cli.models import DEFAULT_PROVIDER, price_book
from mcpmeter.errors import SetupError

if TYPE_CHECKING:
    from mcpmeter.pricing import ModelPrice

MAX_TOKENS: Final = 10**15
_COUNT: Final = re.compile(r"(?P<number>[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)(?P<unit>[kmb]?)", re.IGNORECASE | re.ASCII)
_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_CENT: Final = Decimal("0.01")


def token_count(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """A whole number of tokens: `1500`, `1_000_000`, `250k`, `1.5M`. Raises click.BadParameter."""
    found = _COUNT.fullmatch(value.strip()) if len(value) <= 40 else None
    tokens = Decimal(found["number"]) * _UNITS[found["unit"].lower()] if found else None
    if tokens is None or tokens != tokens.to_integral_value() or tokens > MAX_TOKENS:
        raise click.BadParameter(f"{value[:40]!r} is no token count. Write for example 1500, 1_000_000, 250k or 1.5M.")
    return int(tokens)


@click.group("cost")
def command() -> None:
    """Compare and estimate costs from the price lists. No call is made.

    \b
    Example:
      mcpmeter cost compare --tokens 10M
      mcpmeter cost estimate --model gpt-4.1 --prompt-tokens 1200 --completion-tokens 400
    """


@command.command("compare")
@click.option(
    "--tokens",
    callback=token_count,
    metavar="COUNT",
    required=True,
    help="Number of tokens, for example 10M, 250k or 1_000_000.",
)
@click.option("--provider", default=DEFAULT_PROVIDER, show_default=True, help="The provider with these prices.")
@currency_options
@json_option("Print one JSON object; amounts are strings.")
def compare(tokens: int, provider: str, currency: str | None, rate: Decimal | None, as_json: bool) -> None:
    """Compare the cost of the same number of tokens for each model, at its blended price.

    \b
    Example:
      mcpmeter cost compare --tokens 10M
      mcpmeter cost compare --tokens 10M --currency CNY --rate 7.1
    """
    check_currency(currency, rate)
    rows = _comparison(price_book(provider).models(provider), tokens, rate)
    if not rows:
        raise SetupError(
            f"The prices of '{provider}' have no blended price to compare by.",
            hint="Use prompt and completion prices: mcpmeter cost estimate --help.",
        )
    if as_json:
        click.echo(json.dumps({"provider": provider, "tokens": tokens, "currency": currency, "models": rows}, indent=2))
    else:
        _print_comparison(rows, tokens, currency)


@command.command("estimate")
@click.option("--model", required=True, help="The provider's name of the model, for example gpt-4.1.")
@click.option("--prompt-tokens", callback=token_count, metavar="COUNT", required=True, help="For example 1200 or 250k.")
@click.option("--completion-tokens", callback=token_count, metavar="COUNT", required=True, help="For example 400.")
@click.option("--provider", default=DEFAULT_PROVIDER, show_default=True, help="The provider with these prices.")
@json_option("Print one JSON object; amounts are strings.")
def estimate(model: str, prompt_tokens: int, completion_tokens: int, provider: str, as_json: bool) -> None:
    """Estimate one call at today's prompt and completion prices.

    \b
    Example:
      mcpmeter cost estimate --model gpt-4.1 --prompt-tokens 1200 --completion-tokens 400
    """
    from mcpmeter.money import format_usd, usd_text
    from mcpmeter.records import Usage

    book = price_book(provider)
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, source="estimated")
    charge = book.charge(provider, model, usage, time.time_ns())
    if charge.source == "unpriced":
        nearest = ", ".join(book.nearest(provider, model)) or "none"
        raise SetupError(
            f"no price for {model[:80]!r} at '{provider}'; nearest: {nearest}.",
            hint=f"List all: mcpmeter models --provider {provider}",
        )
    if as_json:
        details = {
            "provider": provider,
            "model": model,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost_usd": usd_text(charge.nanousd),
            "price_list": charge.price_list,
        }
        click.echo(json.dumps(details, indent=2))
    else:
        click.echo(
            f"{format_usd(charge.nanousd)} for {prompt_tokens:,} prompt and {completion_tokens:,} completion tokens"
            f" of {model} at {provider} ({charge.price_list})"
        )


def _comparison(prices: list[ModelPrice], tokens: int, rate: Decimal | None) -> list[dict[str, str | None]]:
    """One row per model, cheapest first, with the saving against the most expensive one in whole per cent."""
    from mcpmeter.money import plain_usd

    priced = [(usd * tokens / 10**6, price) for price in prices if (usd := price.blended_usd_per_mtok) is not None]
    priced.sort(key=lambda pair: (pair[0], pair[1].id))
    highest = priced[-1][0] if priced else Decimal(0)
    return [
        {
            "id": price.id,
            "blended_usd_per_1m_tokens": f"{price.blended_usd_per_mtok:f}",
            "cost_usd": plain_usd(cost),
            "cost_in_currency": None if rate is None else plain_usd(cost * rate),
            "saving_percent": f"{_whole(100 - 100 * cost / highest) if highest else 0}",
            "recommended_for": price.recommended_for,
        }
        for cost, price in priced
    ]


def _print_comparison(rows: list[dict[str, str | None]], tokens: int, currency: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, title=f"{tokens:,} tokens at the blended price", title_justify="left")
    table.add_column("model", overflow="fold")
    for heading in ("cost (USD)", *([f"cost ({currency})"] if currency else []), "saving"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("recommended for")
    for row in rows:
        amounts = [_cell(amount) for amount in (row["cost_usd"], row["cost_in_currency"]) if amount is not None]
        table.add_row(row["id"], *amounts, f"{row['saving_percent']} %", row["recommended_for"])
    Console(highlight=False).print(table)


def _cell(amount: str) -> str:
    """Cents from one dollar up, every decimal below, so that small amounts do not show as zero."""
    return f"{Decimal(amount).quantize(_CENT, rounding=ROUND_HALF_EVEN):,}" if Decimal(amount) >= 1 else amount


def _whole(percent: Decimal) -> Decimal:
    return percent.quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
