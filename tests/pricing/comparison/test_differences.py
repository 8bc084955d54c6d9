"""What counts as a difference, and what explains it."""

from __future__ import annotations

from decimal import Decimal

from mcpmeter.pricing.comparison import MapModel, PriceKey, PriceMap, Prices, Reason, compare

PROMPT, FLEX = PriceKey("prompt"), PriceKey("prompt", "tier=flex")


def price_map(name: str, prices: Prices, *, deprecated: bool = False) -> PriceMap:
    return PriceMap(name, "1", {"openai": {"m": MapModel(dict(prices), deprecated)}})


def ours(prices: Prices) -> dict[tuple[str, str], Prices]:
    return {("openai", "m"): prices}


def test_a_price_that_a_map_has_and_we_have_not_is_a_difference() -> None:
    maps = [price_map("a", {PROMPT: Decimal(1)}), price_map("b", {PROMPT: Decimal(1), FLEX: Decimal("0.5")})]
    found = compare(ours({PROMPT: Decimal("1.0")}), maps, [])
    assert [(each.key, each.map, each.ours, each.theirs) for each in found.unknown] == [
        (FLEX, "b", None, Decimal("0.5"))
    ]
    assert (found.models, found.prices) == (1, 3)


def test_a_price_that_only_we_have_is_none() -> None:
    maps = [price_map("a", {PROMPT: Decimal(1)}), price_map("b", {PROMPT: Decimal(1)})]
    assert compare(ours({PROMPT: Decimal(1), FLEX: Decimal(9)}), maps, []).differences == ()


def test_models_of_one_map_and_deprecated_ones_are_not_compared() -> None:
    one = price_map("a", {PROMPT: Decimal(1)})
    assert compare({}, [one, price_map("b", {PROMPT: Decimal(2)}, deprecated=True)], []).models == 0
    assert compare({}, [one, PriceMap("b", "1", {"openai": {}})], []).models == 0


def test_a_grounded_prompt_is_the_maps_web_search() -> None:
    maps = [price_map("a", {PriceKey("web_search"): Decimal(35)})]
    assert compare(ours({PriceKey("grounded_prompt"): Decimal(35)}), maps, []).differences == ()


def test_a_reason_explains_only_the_amount_it_names() -> None:
    reason = Reason(provider="openai", models=("m*",), items=("prompt",), theirs=("2.0",), reason="rounded")
    maps = [price_map("a", {PROMPT: Decimal(2)}), price_map("b", {PROMPT: Decimal(3)})]
    found = compare(ours({PROMPT: Decimal(1)}), maps, [reason])
    assert [(each.map, each.reason) for each in found.differences] == [("a", "rounded"), ("b", "")]
    assert found.unused == ()


def test_a_reason_without_a_difference_is_stale() -> None:
    reason = Reason(provider="openai", models=("gone",), reason="why")
    found = compare(ours({PROMPT: Decimal(1)}), [price_map("a", {PROMPT: Decimal(1)})], [reason])
    assert found.unused == (reason,)
