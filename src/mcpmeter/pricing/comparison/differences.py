"""What differs between our prices and a map's, and why."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Final

import msgspec

from mcpmeter.pricing.comparison.price_map import PriceKey, PriceMap, Prices

_FILE: Final = "differences.toml"


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[reason]]` of `differences.toml`. The first one that fits a difference explains it."""

    provider: str
    models: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """Names or globs."""
    items: tuple[str, ...] = ("*",)
    """Names or globs of `PriceKey`'s text: `cached_read*`, `* (batch)`."""
    map: str = "*"
    """`litellm` or `genai-prices`."""
    theirs: tuple[str, ...] = ()
    """The map's amounts that it explains; empty for all."""
    reason: Annotated[str, msgspec.Meta(min_length=1)]

    def explains(self, difference: Difference) -> bool:
        """Whether it is the reason of a difference."""
        return (
            self.provider == difference.provider
            and fnmatchcase(difference.map, self.map)
            and any(fnmatchcase(difference.model, glob) for glob in self.models)
            and any(fnmatchcase(str(difference.key), glob) for glob in self.items)
            and (not self.theirs or any(Decimal(amount) == difference.theirs for amount in self.theirs))
        )


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A price that a map has and that is not ours."""

    provider: str
    model: str
    key: PriceKey
    ours: Decimal | None
    """None: we have no price for it."""
    map: str
    theirs: Decimal
    reason: str = ""
    """Empty: unknown."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Our prices against maps."""

    differences: tuple[Difference, ...]
    models: int
    """Compared models: they stand in all maps, and none of them calls one deprecated."""
    prices: int
    """Compared prices, of all maps together."""
    unused: tuple[Reason, ...] = ()
    """Reasons that explain nothing any more."""

    @property
    def unknown(self) -> tuple[Difference, ...]:
        """The differences without a reason."""
        return tuple(difference for difference in self.differences if not difference.reason)


def compare(
    ours: Mapping[tuple[str, str], Prices], maps: Sequence[PriceMap], reasons: Sequence[Reason] | None = None
) -> Comparison:
    """Compare our prices per provider and model with those of maps; ours are those that a call would pay.

    A price that only we have is no difference: there is nothing to compare it with.
    """
    known = _reasons() if reasons is None else tuple(reasons)
    found: list[Difference] = []
    used: set[int] = set()
    models = prices = 0
    for provider, model in common_models(maps):
        models += 1
        mine = _comparable(ours.get((provider, model), {}))
        for price_map in maps:
            theirs = _comparable(price_map.providers[provider][model].prices)
            prices += len(theirs)
            for key, amount in sorted(theirs.items()):
                if (price := _price_at(mine, key)) == amount:
                    continue
                difference = Difference(
                    provider=provider, model=model, key=key, ours=price, map=price_map.name, theirs=amount
                )
                why = next((index for index, reason in enumerate(known) if reason.explains(difference)), None)
                if why is not None:
                    used.add(why)
                    difference = msgspec.structs.replace(difference, reason=known[why].reason)
                found.append(difference)
    unused = tuple(reason for index, reason in enumerate(known) if index not in used)
    return Comparison(differences=tuple(found), models=models, prices=prices, unused=unused)


def common_models(maps: Sequence[PriceMap]) -> Iterator[tuple[str, str]]:
    """The models that stand in all maps and that none of them calls deprecated, by provider."""
    first, *others = maps
    for provider, models in first.providers.items():
        for model in models:
            entries = [found for each in maps if (found := each.providers.get(provider, {}).get(model)) is not None]
            if len(entries) == len(others) + 1 and not any(entry.deprecated for entry in entries):
                yield provider, model


def _price_at(prices: Prices, key: PriceKey) -> Decimal | None:
    """The price of a prompt that is just above the key's threshold."""
    starts = [found.above for found in prices if found[:2] == key[:2] and found.above <= key.above]
    return prices[key._replace(above=max(starts))] if starts else None


def _comparable(prices: Prices) -> dict[PriceKey, Decimal]:
    """Prices under names that all maps share: grounded prompts are web searches elsewhere."""
    return {
        (key._replace(item="web_search") if key.item == "grounded_prompt" else key): amount
        for key, amount in prices.items()
    }


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: tuple[Reason, ...] = ()


@lru_cache(maxsize=1)
def _reasons() -> tuple[Reason, ...]:
    raw = tomllib.loads(files(__package__).joinpath(_FILE).read_text(encoding="utf-8"))
    return msgspec.convert(raw, _File).reason
