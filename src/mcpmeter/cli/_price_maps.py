"""What `mcpmeter prices diff` compares, prints and writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from mcpmeter.cli._tables import plain
from mcpmeter.cli.models import built_in_sources
from mcpmeter.errors import SetupError

if TYPE_CHECKING:
    from mcpmeter.pricing import Rates
    from mcpmeter.pricing.comparison import Comparison, Difference, PriceKey, PriceMap

BEGIN: Final = "<!-- begin: mcpmeter prices diff -->"
END: Final = "<!-- end: mcpmeter prices diff -->"


def compared(
    genai: Path | None, litellm: Path | None, at: datetime, only: Sequence[str] = ()
) -> tuple[Comparison, list[PriceMap]]:
    """Our prices at an instant against both maps. Raises SetupError if a map cannot be read."""
    from mcpmeter.pricing import PriceBook, bundled_price_lists
    from mcpmeter.pricing.comparison import PriceMap, common_models, compare, read_genai_prices, read_litellm

    sources = built_in_sources()
    theirs = read_litellm(litellm, at)
    chosen = {name: found for name, found in theirs.providers.items() if not only or name in only}
    theirs = PriceMap(theirs.name, theirs.version, chosen)
    ids = {name: source.genai_id for name, source in sources.items() if source.genai_id}
    maps = [read_genai_prices(genai, ids, {name: list(models) for name, models in chosen.items()}, at), theirs]
    book = PriceBook(bundled_price_lists(), sources=sources)
    ours = {(provider, model): _ours(book.rates(provider, model, at)) for provider, model in common_models(maps)}
    return compare(ours, maps), maps


def _ours(rates: Rates | None) -> dict[PriceKey, Decimal]:
    """What a call pays for each item, also where an item costs what another one does."""
    from mcpmeter.items import ITEMS
    from mcpmeter.pricing.comparison import PriceKey
    from mcpmeter.pricing.price_table import condition_text, price_table, usd_of

    return {
        PriceKey(item, condition_text(row.conditions), row.above_prompt_tokens): usd_of(item, price)
        for row in (price_table(rates) if rates else ())
        for item in ITEMS
        if (price := row.price(item)) is not None
    }


def write_page(page: Path, comparison: Comparison, maps: Sequence[PriceMap], on: date) -> None:
    """Replace the table between the two marks of a page. Raises SetupError if they are missing."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise SetupError(f"{page} has no place for the table.", hint=f"Put {BEGIN} and {END} on lines of their own.")
    table = "\n".join(markdown(comparison, maps, on))
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def markdown(comparison: Comparison, maps: Sequence[PriceMap], on: date) -> Iterator[str]:
    """The table of docs/prices.md, line by line."""
    names = " and ".join(f"{each.name} {each.version}" for each in maps)
    yield (
        f"Prices of {on.isoformat()} against {names}: {comparison.models:,} models, {comparison.prices:,} prices, "
        f"{len(comparison.differences):,} differences, {len(comparison.unknown):,} of them without a known reason."
    )
    yield ""
    yield "| provider | models | differences | map | reason |"
    yield "| --- | --- | --- | --- | --- |"
    for group in _groups(comparison.differences):
        models = ", ".join(f"`{model}`" for model in group.models)
        cells = (group.provider, models, "; ".join(group.amounts), group.map, group.reason or "unknown")
        yield f"| {' | '.join(cells)} |"


class _Group(NamedTuple):
    """Differences that have the same amounts and reason."""

    provider: str
    models: list[str]
    amounts: list[str]
    map: str
    reason: str


def _groups(differences: Sequence[Difference]) -> list[_Group]:
    per_model: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for each in differences:
        amounts = f"{each.key}: ours {plain(each.ours) or 'none'}, theirs {plain(each.theirs)}"
        per_model[each.provider, each.model, each.map, each.reason].append(amounts)
    groups: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (provider, model, name, reason), found in per_model.items():
        groups[provider, name, reason, tuple(found)].append(model)
    return [
        _Group(provider, models, list(found), name, reason)
        for (provider, name, reason, found), models in groups.items()
    ]


def print_comparison(comparison: Comparison, maps: Sequence[PriceMap]) -> None:
    from mcpmeter.cli._tables import print_rows

    rows = [
        {
            "provider": each.provider,
            "model": each.model,
            "item": str(each.key),
            "ours": plain(each.ours),
            "theirs": plain(each.theirs),
            "map": each.map,
            "reason": each.reason or "unknown",
        }
        for each in comparison.differences
    ]
    if rows:
        print_rows(rows, right={"ours", "theirs"})
    names = " and ".join(f"{each.name} {each.version}" for each in maps)
    click.echo(
        f"{names}: {comparison.models:,} models and {comparison.prices:,} prices compared, "
        f"{len(comparison.differences):,} differences, {len(comparison.unknown):,} without a known reason"
    )


def as_json(comparison: Comparison, maps: Sequence[PriceMap], at: datetime) -> Mapping[str, Any]:
    return {
        "at": at.isoformat(),
        "maps": {each.name: each.version for each in maps},
        "models": comparison.models,
        "prices": comparison.prices,
        "unknown": len(comparison.unknown),
        "differences": [
            {
                "provider": each.provider,
                "model": each.model,
                "item": each.key.item,
                "conditions": each.key.condition,
                "above_prompt_tokens": each.key.above,
                "ours": plain(each.ours) or None,
                "map": each.map,
                "theirs": plain(each.theirs),
                "reason": each.reason or None,
            }
            for each in comparison.differences
        ],
    }
