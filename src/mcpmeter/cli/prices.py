"""`mcpmeter prices`: what every item costs and where that is from, and the differences from other price maps."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mcpmeter.cli._options import config_faults_as_usage_errors, config_option_for, json_option
from mcpmeter.cli._tables import plain
from mcpmeter.cli.models import built_in_sources
from mcpmeter.errors import SetupError

if TYPE_CHECKING:
    from mcpmeter.pricing import PriceBook, PriceSource, Rates
    from mcpmeter.pricing.overlays import Overlay, OverlayEntry
    from mcpmeter.pricing.price_table import TableRow
    from mcpmeter.records import Conditions


class Instant(click.ParamType[Any]):
    """A day (its begin) or an instant; without an offset in UTC."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The instant that a text names."""
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{str(value)[:40]!r} is no date. Write 2026-11-30 or 2026-11-30T02:00.", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)


@click.group("prices")
def command() -> None:
    """Show what every item costs and where the price is from; compare it with other price maps. No call is made.

    \b
    Example:
      mcpmeter prices show gpt-5 --tier flex
      mcpmeter prices diff --litellm maps
    """


@command.command("show")
@click.argument("model")
@config_option_for(
    "Also show the prices of this configuration; default: $MCPMETER_CONFIG, else ./mcpmeter.yaml, if any."
)
@click.option("--provider", help="The provider of the model; default: the first one that has a price for it.")
@click.option("--at", type=Instant(), help="The day or instant (UTC) of the prices; default: now.")
@click.option("--tier", default="", help="Only the prices of this service tier: flex, priority, ultrafast.")
@click.option("--speed", default="", help="Only the prices at this speed: fast.")
@click.option("--region", default="", help="Only the prices of this region: us, eu.")
@click.option("--completion-window", default="", help="Only the prices with this completion window: 2h, 8h.")
@click.option("--batch", is_flag=True, help="Only the prices of the batch API.")
@json_option("Print one JSON object; prices are strings, which keeps them exact.")
def show(
    model: str,
    *,
    config_path: Path | None,
    provider: str | None,
    at: datetime | None,
    tier: str,
    speed: str,
    region: str,
    completion_window: str,
    batch: bool,
    as_json: bool,
) -> None:
    """Show all prices of a model: per item, condition and size of the prompt, with the list, the source and its date.

    With a configuration, its providers come first, and its `pricing.files` apply as they do to calls.

    \b
    Example:
      mcpmeter prices show claude-opus-5-5
      mcpmeter prices show gpt-4.1 --tier priority
      mcpmeter prices show deepseek-v4-pro --at 2026-11-30T02:00
    """
    from mcpmeter.pricing.price_table import price_table, rows_under
    from mcpmeter.records import STANDARD, Conditions

    wanted = Conditions(tier=tier, speed=speed, region=region, completion_window=completion_window, batch=batch)
    found = _find(_prices(config_path), model, provider, at or datetime.now(UTC), wanted)
    rows = price_table(found.rates) if wanted == STANDARD else list(rows_under(found.rates, wanted))
    if as_json:
        click.echo(json.dumps(_shown(found, rows), indent=2))
    else:
        _print_prices(found, rows)


class _Found(NamedTuple):
    """The prices of a model at a provider."""

    provider: str
    model: str
    at: datetime
    rates: Rates
    entries: list[OverlayEntry]
    pages: list[str]
    """The provider's pages of prices, as genai-prices names them."""
    others: list[str]
    """Other providers that have a price for the model."""


class _Prices(NamedTuple):
    """The price book with what it is made of."""

    book: PriceBook
    sources: dict[str, PriceSource]
    overlays: list[Overlay]
    """Those of the configuration."""


def _prices(config_path: Path | None) -> _Prices:
    from mcpmeter.config import find_file, load
    from mcpmeter.config.prices import price_files, price_sources
    from mcpmeter.pricing import PriceBook, bundled_price_lists

    if (path := find_file(config_path, os.environ)) is None:
        sources = built_in_sources()
        return _Prices(PriceBook(bundled_price_lists(), sources=sources), sources, [])
    with config_faults_as_usage_errors():
        settings = load(path, os.environ)
        lists, overlays = price_files(settings)
        configured = price_sources(upstream.provider for upstream in settings.upstreams())
        others = {name: source for name, source in built_in_sources().items() if name not in configured}
        sources = {**configured, **others}
        return _Prices(
            PriceBook([*bundled_price_lists(), *lists], sources=sources, overlays=overlays), sources, overlays
        )


def _find(prices: _Prices, model: str, provider: str | None, at: datetime, wanted: Conditions) -> _Found:
    from mcpmeter.pricing.book import LIKE
    from mcpmeter.pricing.genai import genai_providers
    from mcpmeter.pricing.overlays import condition_pairs
    from mcpmeter.pricing.price_table import condition_text, entries_of, rows_under
    from mcpmeter.records import STANDARD

    book, sources = prices.book, prices.sources
    if provider is not None and provider not in sources:
        raise SetupError(f"No prices for a provider '{provider}'.", hint=f"Known providers: {', '.join(sources)}.")
    priced = {name: rates for name in sources if (rates := book.rates(name, model, at)) is not None}
    chosen = [name for name in priced if provider in (None, name) and any(rows_under(priced[name], wanted))]
    if not chosen:
        known = [name for name in priced if provider in (None, name)]
        raise _no_price(book, model, known, condition_text(wanted), [provider] if provider else list(sources))
    name, source = chosen[0], sources[chosen[0]]
    canonical = book.canonical(name, model) or model
    ids = {each for each in (source.genai_id, source.like or LIKE.get(source.genai_id or "")) if each}
    entries = [
        entry
        for entry in entries_of(ids, canonical, at.astimezone(UTC).date(), prices.overlays)
        if wanted == STANDARD or set(condition_pairs(entry.when)) <= set(condition_pairs(wanted))
    ]
    pages = [page for each in ids for page in genai_providers()[each].pricing_urls or ()]
    return _Found(name, canonical, at, priced[name], entries, pages, [other for other in priced if other != name])


def _no_price(
    book: PriceBook, model: str, known: Sequence[str], conditions: str, providers: Sequence[str]
) -> SetupError:
    if known:
        return SetupError(
            f"{model[:80]!r} has no price with {conditions} at {', '.join(known)}.",
            hint=f"All its prices: mcpmeter prices show {model[:80]} --provider {known[0]}",
        )
    near = {name for provider in providers for name in book.nearest(provider, model)}
    return SetupError(
        f"No price for {model[:80]!r}; nearest: {', '.join(sorted(near)[:5]) or 'none'}.",
        hint="List all: mcpmeter models --provider NAME",
    )


def _shown(found: _Found, rows: Sequence[TableRow]) -> dict[str, Any]:
    from mcpmeter.pricing.price_table import condition_text, per_unit, usd_of

    return {
        "provider": found.provider,
        "model": found.model,
        "at": found.at.isoformat(),
        "price_list": found.rates.list_name,
        "prices": [
            {
                "conditions": condition_text(row.conditions),
                "above_prompt_tokens": row.above_prompt_tokens,
                "item": item,
                "usd": plain(usd_of(item, price)),
                "per": per_unit(item),
                "unit_price": price.text(item),
                "price_list": price.origin or found.rates.list_name,
            }
            for row in rows
            for item, price in row.prices.items()
        ],
        "pages": found.pages,
        "sources": [_source(entry) for entry in found.entries],
        "other_providers": found.others,
    }


def _source(entry: OverlayEntry) -> dict[str, Any]:
    from mcpmeter.pricing.overlays import condition_pairs

    return {
        "conditions": " ".join(f"{name}={value}" for name, value in condition_pairs(entry.when)),
        "items": sorted(entry.prices),
        "times": entry.times or None,
        "above_prompt_tokens": entry.above_prompt_tokens,
        "hours": list(entry.hours),
        "weekdays": list(entry.weekdays),
        "except_holidays": entry.except_holidays,
        "from": entry.valid_from.isoformat(),
        "until": entry.until.isoformat() if entry.until else None,
        "source": entry.source,
        "read": entry.read.isoformat(),
        "reason": entry.reason,
    }


def _print_prices(found: _Found, rows: Sequence[TableRow]) -> None:
    from mcpmeter.cli._tables import print_rows

    click.echo(f"{found.model} at {found.provider}, {found.at:%Y-%m-%d %H:%M %Z}; {found.rates.list_name}\n")
    tokens, fees = _token_rows(rows), _fee_rows(rows)
    if tokens:
        click.echo("US dollars per 1M tokens")
        print_rows(tokens, right=set(tokens[0]) - {"conditions", "prompts"})
    if fees:
        click.echo("\nOther units, US dollars")
        print_rows(fees, right={"price"})
    if found.pages:
        click.echo(f"\nThe provider's pages: {', '.join(found.pages)}")
    if found.entries:
        click.echo("\nSources beside the list")
        print_rows([_source_row(entry) for entry in found.entries])
    if found.others:
        click.echo(f"\nAlso priced at: {', '.join(found.others)} (--provider NAME)")


def _token_rows(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    from mcpmeter.items import ITEMS
    from mcpmeter.pricing.price_table import condition_text, usd_of

    present = {item for row in rows for item in row.prices}
    items = [item for item, known in ITEMS.items() if item in present and known.unit == "token"]
    return [
        {
            "conditions": condition_text(row.conditions) or "standard",
            "prompts": f"> {row.above_prompt_tokens:,}" if row.above_prompt_tokens else "all",
            **{item: plain(usd_of(item, row.prices[item])) if item in row.prices else "" for item in items},
        }
        for row in rows
        if items
    ]


def _fee_rows(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    from mcpmeter.items import ITEMS
    from mcpmeter.pricing.price_table import per_unit, usd_of

    first = rows[0].prices if rows else {}
    return [
        {"item": item, "price": plain(usd_of(item, price)) or "0", "per": per_unit(item)}
        for item, price in first.items()
        if ITEMS[item].unit != "token"
    ]


def _source_row(entry: OverlayEntry) -> dict[str, Any]:
    shown = _source(entry)
    when = [shown["conditions"], *entry.hours, "-".join(dict.fromkeys((*entry.weekdays[:1], *entry.weekdays[-1:])))]
    band = f"> {entry.above_prompt_tokens:,} tokens" if entry.above_prompt_tokens else ""
    holidays = f"except holidays {entry.except_holidays}" if entry.except_holidays else ""
    times = entry.times if isinstance(entry.times, str) else ", ".join(f"{k} {v}" for k, v in entry.times.items())
    return {
        "prices": " ".join(part for part in (", ".join(shown["items"]), f"x {times}" if times else "") if part),
        "when": " ".join(part for part in (*when, band, holidays) if part),
        "from": shown["from"],
        "source": entry.source,
        "read": shown["read"],
    }


@command.command("diff")
@click.option("--genai-prices", "genai", type=click.Path(path_type=Path), help="A folder with another genai-prices.")
@click.option("--litellm", type=click.Path(path_type=Path), help="A folder with LiteLLM, or its JSON file.")
@click.option("--at", type=Instant(), help="The day or instant (UTC) of the prices; default: today at 00:00.")
@click.option("--provider", "only", multiple=True, help="Compare only this provider; may be given several times.")
@click.option(
    "--write", type=click.Path(path_type=Path, exists=True), help="Write the table to a page, between its marks."
)
@json_option("Print one JSON object; prices are strings.")
def diff(
    *,
    genai: Path | None,
    litellm: Path | None,
    at: datetime | None,
    only: tuple[str, ...],
    write: Path | None,
    as_json: bool,
) -> int:
    """Compare our prices with those of genai-prices and LiteLLM, which are installed apart and not imported.

    Compares the models that stand in both maps and that neither calls deprecated. Exit code 1: a difference has no
    known reason.

    \b
    Example:
      pip install --no-deps --target maps litellm
      mcpmeter prices diff --litellm maps
    """
    from mcpmeter.cli._price_maps import as_json as printed
    from mcpmeter.cli._price_maps import compared, print_comparison, write_page

    day = at or datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    comparison, maps = compared(genai, litellm, day, only)
    if write is not None:
        write_page(write, comparison, maps, day.date())
    if as_json:
        click.echo(json.dumps(printed(comparison, maps, day), indent=2))
    else:
        print_comparison(comparison, maps)
    for reason in comparison.unused if not only else ():
        models = ", ".join(reason.models)
        click.echo(f"Explains nothing any more: {reason.provider} {models}: {reason.reason}", err=True)
    return 1 if comparison.unknown else 0
