"""A charge line by line: for calls with items, conditions or anything unknown. Plain calls never come here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from mcpmeter.items import ITEMS
from mcpmeter.money import MAX_NANOUSD
from mcpmeter.pricing.rates import SCALED_NANOUSD, Rates, amount_of, contradictory, half_even
from mcpmeter.records import ChargeLine, Usage, UsageItem, plain_items

MAX_QUANTITY: Final = 10**12
_MAX_LISTS: Final = 4

RatesOf = Callable[[str], tuple[Rates | None, tuple[str, ...]]]
"""A model's rates under the call's conditions, and those conditions that it has no price for; "" is the call's own."""


class Bill(NamedTuple):
    """The lines of a call."""

    lines: tuple[ChargeLine, ...]
    nanousd: int | None
    """None if its tokens have no price; then no line has one."""
    price_list: str = ""


class _Draft(NamedTuple):
    item: UsageItem
    amount: int | None = None
    unit_price: str = ""
    price_list: str = ""


def bill(usage: Usage, rates_of: RatesOf) -> Bill:
    """The lines of a call's usage, which add up to its cost; the cost is rounded once, half to even."""
    own, own_missing = rates_of("")
    items = usage.items or _items_of_counts(usage, own)
    if items is None or any(not 0 <= item.quantity <= MAX_QUANTITY for item in (*items, *usage.unknown)):
        return _unpriced(items or (), usage.unknown)
    drafts: list[_Draft] = []
    determined = bool(items) or not own_missing
    unpriced_conditions = {} if items else _named(own_missing, "")
    for entry in _entries(items):
        rates, missing = rates_of(entry[0].model)
        unpriced_conditions |= _named(missing, entry[0].model)
        found = [_draft(item, None if missing else rates, _prompt_of(entry)) for item in entry]
        # Another model's tokens are lines of their own: without a price they leave the call's own priced.
        determined = determined and (bool(entry[0].model) or not (missing or any(map(_lacks_price, found))))
        drafts += found
    if own is not None and not own_missing and (fee := _request_fee(usage, own)) is not None:
        drafts.append(fee)
    unknown = (*usage.unknown, *unpriced_conditions)
    priced = [draft for draft in drafts if draft.amount is not None]
    nanousd = half_even(sum(draft.amount or 0 for draft in priced), SCALED_NANOUSD)
    nothing = not priced and (bool(drafts) or bool(unknown))
    if not determined or nothing or nanousd > MAX_NANOUSD:
        return _unpriced(items, unknown)
    lists = list(dict.fromkeys(draft.price_list for draft in priced if draft.price_list))
    price_list = " + ".join(lists[:_MAX_LISTS]) or (own.list_name if own else "")
    return Bill((*_rounded(drafts, nanousd), *_unpriced((), unknown).lines), nanousd, price_list)


def _items_of_counts(usage: Usage, rates: Rates | None) -> tuple[UsageItem, ...] | None:
    """The items of a plain call's counts; None if they do not determine them."""
    if contradictory(usage) or usage.audio_tokens:
        return None
    if rates is not None:
        band = rates.band(usage.prompt_tokens)
        if (usage.prompt_tokens and band.prompt is None) or (usage.completion_tokens and band.completion is None):
            return None
    return plain_items(usage)


def _entries(items: Sequence[UsageItem]) -> list[list[UsageItem]]:
    """The items per entry of the provider's bill: each has its own model, and its own prompt that chooses the band.

    An entry ends where the model changes; where a model has several, also before an item that repeats or a prompt that
    follows a completion.
    """
    names = [(item.model, item.item) for item in items]
    if len(set(names)) == len(names):
        by_model: dict[str, list[UsageItem]] = {}
        for item in items:
            by_model.setdefault(item.model, []).append(item)
        return list(by_model.values())
    entries: list[list[UsageItem]] = []
    for item in items:
        last = entries[-1] if entries else []
        if not last or _begins_entry(item, last):
            entries.append([])
        entries[-1].append(item)
    return entries


def _begins_entry(item: UsageItem, last: Sequence[UsageItem]) -> bool:
    sides = {_side(one) for one in last}
    return (
        item.model != last[0].model
        or any(item.item == one.item for one in last)
        or (_side(item) == "prompt" and "completion" in sides)
    )


def _draft(item: UsageItem, rates: Rates | None, prompt_tokens: int) -> _Draft:
    known = ITEMS.get(item.item)
    if known is not None and known.is_free and rates is not None:
        return _Draft(item, 0, "0", rates.list_name)
    price = None if rates is None or known is None else rates.band(prompt_tokens).price(item.item)
    if price is None or rates is None:
        return _Draft(item)
    return _Draft(
        item, amount_of(item.item, price, item.quantity), price.text(item.item), price.origin or rates.list_name
    )


def _named(missing: Iterable[str], model: str) -> dict[UsageItem, None]:
    return dict.fromkeys(UsageItem(name, 1, model) for name in missing)


def _request_fee(usage: Usage, rates: Rates) -> _Draft | None:
    if not rates.request or any(item.item.startswith("request") for item in usage.items):
        return None
    return _draft(UsageItem("request", 1), rates, usage.prompt_tokens)


def _lacks_price(draft: _Draft) -> bool:
    """Whether a draft is of tokens that every list of tokens has a price for, and this one has none."""
    if draft.amount is not None or not draft.item.quantity:
        return False
    name = draft.item.item
    while (known := ITEMS.get(name)) and known.like:
        name = known.like
    return name in {"prompt", "completion"}


def _rounded(drafts: Sequence[_Draft], nanousd: int) -> Iterable[ChargeLine]:
    """The lines of drafts, by largest remainder, so that they add up."""
    floors = [None if draft.amount is None else draft.amount // SCALED_NANOUSD for draft in drafts]
    left = nanousd - sum(floor or 0 for floor in floors)
    by_rest = sorted(range(len(drafts)), key=lambda number: -((drafts[number].amount or 0) % SCALED_NANOUSD))
    raised = set(by_rest[:left])
    for number, (draft, floor) in enumerate(zip(drafts, floors, strict=True)):
        yield ChargeLine(
            item=draft.item.item,
            quantity=draft.item.quantity,
            nanousd=None if floor is None else floor + (number in raised),
            unit_price=draft.unit_price,
            price_list=draft.price_list,
            source="unpriced" if floor is None else "listed",
            model=draft.item.model,
        )


def _unpriced(items: Iterable[UsageItem], unknown: Iterable[UsageItem]) -> Bill:
    lines = tuple(ChargeLine(item.item, item.quantity, None, model=item.model) for item in (*items, *unknown))
    return Bill(lines, None)


def _prompt_of(entry: Iterable[UsageItem]) -> int:
    return sum(item.quantity for item in entry if _side(item) == "prompt")


def _side(item: UsageItem) -> str:
    known = ITEMS.get(item.item)
    return known.side if known else ""
