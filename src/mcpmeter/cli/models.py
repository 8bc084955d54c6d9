"""`mcpmeter models`: the models that have a price."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from mcpmeter.cli._options import json_option
from mcpmeter.errors import SetupError

if TYPE_CHECKING:
    from mcpmeter.pricing import ModelPrice, PriceBook, PriceSource

DEFAULT_PROVIDER = "holysheep"


def built_in_sources() -> dict[str, PriceSource]:
    """The sources of the built-in providers' prices, by provider."""
    from mcpmeter.pricing import PriceSource
    from mcpmeter.providers import load_providers

    return {
        provider.name: PriceSource(provider.price_list or None, provider.genai_prices_id or None)
        for provider in load_providers().values()
        if provider.price_list or provider.genai_prices_id
    }


def price_book(provider: str) -> PriceBook:
    """The prices of one built-in provider. Raises SetupError for any other."""
    from mcpmeter.pricing import PriceBook, bundled_price_lists

    sources = built_in_sources()
    if provider not in sources:
        raise SetupError(f"No prices for a provider '{provider}'.", hint=f"Known providers: {', '.join(sources)}.")
    return PriceBook(bundled_price_lists(), sources={provider: sources[provider]})


@click.command("models")
@click.option("--provider", default=DEFAULT_PROVIDER, show_default=True, help="The provider of these models.")
@json_option("Print one JSON object; prices are strings, which keeps them exact.")
def command(provider: str, as_json: bool) -> None:
    """List the models that have a price, in US dollars per million tokens.

    \b
    Example:
      mcpmeter models
      mcpmeter models --provider anthropic --json
    """
    prices = price_book(provider).models(provider)
    if as_json:
        click.echo(json.dumps({"provider": provider, "models": [_as_json(price) for price in prices]}, indent=2))
    else:
        _print_table(provider, prices)


def _as_json(price: ModelPrice) -> dict[str, object]:
    amounts = {
        "prompt": price.prompt_usd_per_mtok,
        "completion": price.completion_usd_per_mtok,
        "blended": price.blended_usd_per_mtok,
    }
    return {
        "id": price.id,
        "pricing_per_1m_tokens": {side: None if usd is None else f"{usd:f}" for side, usd in amounts.items()},
        "recommended_for": price.recommended_for,
        "tiered": price.tiered,
        "price_list": price.list_name,
    }


def _print_table(provider: str, prices: list[ModelPrice]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    lists = ", ".join(sorted({price.list_name for price in prices}))
    table = Table(box=box.SIMPLE, title=f"{provider}: US dollars per 1M tokens ({lists})", title_justify="left")
    table.add_column("model", overflow="fold")
    for side in ("prompt", "completion", "blended"):
        table.add_column(side, justify="right", no_wrap=True)
    table.add_column("recommended for")
    for price in prices:
        mark = "+" if price.tiered else ""
        table.add_row(
            price.id,
            _cell(price.prompt_usd_per_mtok, mark),
            _cell(price.completion_usd_per_mtok, mark),
            _cell(price.blended_usd_per_mtok, ""),
            price.recommended_for,
        )
    console = Console(highlight=False)
    console.print(table)
    if any(price.tiered for price in prices):
        console.print("+ long prompts cost more; `mcpmeter cost estimate` takes their length into account")


def _cell(usd: Decimal | None, mark: str) -> str:
    return "-" if usd is None else f"{usd:f}{mark}"
