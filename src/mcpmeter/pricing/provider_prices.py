"""One provider's prices: genai-prices with the overlays on it, else those of the provider that it resells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from msgspec import structs

from mcpmeter.pricing import names
from mcpmeter.pricing.calendars import bundled_holidays
from mcpmeter.pricing.genai import GenaiPrices
from mcpmeter.pricing.overlays import Overlay
from mcpmeter.pricing.patches import Patch, patch_of
from mcpmeter.pricing.rates import Rates
from mcpmeter.pricing.timelines import Timeline


class ProviderPrices:
    """Lookups are not cached here."""

    def __init__(
        self, genai_id: str, genai: GenaiPrices, overlays: Sequence[Overlay] = (), like: ProviderPrices | None = None
    ) -> None:
        self._genai_id = genai_id
        self._genai = genai
        self._overlays = [overlay for overlay in overlays if overlay.provider == genai_id]
        self._like = like

    def timeline(self, name: str) -> Timeline | None:
        """The dated rates of the model of a lower-case name; None for unknown ones."""
        name = self._genai.bare(name)
        name = self._aliases.get(name) or self._aliases.get(names.dated_base(name) or "") or name
        if found := self._genai.model(name):
            timeline = self._genai.timeline(found)
            return self._patched(timeline, dict.fromkeys((found.id.lower(), name)))
        if self._like is not None and (alike := self._like.timeline(name)):
            return self._patched(_marked(alike, self._like._genai_id, self._genai_id), {alike.model.lower(): None})
        bases = (name, names.dated_base(name), names.release_base(name))
        new = next((base for base in bases if base is not None and base in self._patches), None)
        return None if new is None else self._patched(Timeline(model=new, entries=()), {new: None})

    def context_window(self, name: str) -> int | None:
        """The most tokens that the model of a lower-case name can read, if that is known."""
        window = self._genai.context_window(self._genai.bare(name))
        return window or (self._like.context_window(name) if self._like else None)

    def ids(self) -> Iterator[str]:
        """The models by id: genai-prices' in its order, then those of the overlays alone."""
        known = [model.id for model in self._genai.models()]
        yield from known
        yield from sorted(self._patches.keys() - {model.lower() for model in known})

    def printed_names(self) -> Iterator[str]:
        """Every printed name that `timeline` finds."""
        yield from self._genai.printed_names()
        yield from self._patches
        yield from self._aliases

    def _patched(self, timeline: Timeline, keys: dict[str, None]) -> Timeline:
        found = [patch for key in keys for patch in self._patches.get(key, ())]
        return structs.replace(timeline, patches=(*timeline.patches, *found)) if found else timeline

    @cached_property
    def _aliases(self) -> dict[str, str]:
        return {name: model for overlay in self._overlays for name, model in overlay.aliases.items()}

    @cached_property
    def _patches(self) -> dict[str, list[Patch]]:
        """By genai-prices' id, or by the name that an overlay has if that is a snapshot or a new model."""
        holidays = bundled_holidays() if self._overlays else {}
        found: dict[str, list[Patch]] = {}
        for overlay in self._overlays:
            for entry in sorted(overlay.price, key=lambda entry: entry.valid_from):
                patch = patch_of(overlay, entry, holidays)
                for model in entry.models:
                    found.setdefault(self._key(model.lower()), []).append(patch)
        return found

    def _key(self, name: str) -> str:
        known = None if names.dated_base(name) else self._genai.model(name)
        return known.id.lower() if known else name


def _marked(timeline: Timeline, owner: str, reseller: str) -> Timeline:
    """A timeline whose rates say that they are another provider's."""
    note = f"({owner}'s prices for {reseller})"

    def marked(rates: Rates | None) -> Rates | None:
        return None if rates is None else structs.replace(rates, list_name=f"{rates.list_name} {note}")

    entries = tuple(structs.replace(entry, rates=marked(entry.rates)) for entry in timeline.entries)
    return structs.replace(timeline, entries=entries, otherwise=marked(timeline.otherwise))
