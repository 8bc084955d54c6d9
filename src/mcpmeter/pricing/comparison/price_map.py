"""The form that prices are compared in: one amount per model, condition, item and size of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from mcpmeter.errors import SetupError


class PriceKey(NamedTuple):
    """What an amount is the price of."""

    item: str
    """A name of `items.ITEMS`."""
    condition: str = ""
    """`tier=flex`, `speed=fast`, `region=us`, `batch`; empty for the standard price."""
    above: int = 0
    """The price applies to prompts of more tokens than this."""

    def __str__(self) -> str:
        band = f" above {self.above:,}" if self.above else ""
        return f"{self.item}{band}" + (f" ({self.condition})" if self.condition else "")


Prices = Mapping[PriceKey, Decimal]
"""US dollars per million tokens, and per thousand of every other unit."""


class MapModel(msgspec.Struct, frozen=True):
    """One model of a map."""

    prices: dict[PriceKey, Decimal]
    deprecated: bool = False
    """The map says that the provider retires the model, or has retired it."""


class PriceMap(msgspec.Struct, frozen=True):
    """The prices of one project, by our names of providers and the providers' names of models."""

    name: str
    version: str
    providers: dict[str, dict[str, MapModel]]


class Package(NamedTuple):
    """A file or folder of an installed package, and the package's version."""

    path: Path
    version: str


UNKNOWN_VERSION: Final = "unknown version"


def find_package(given: Path | None, name: str, member: str, option: str) -> Package:
    """The member of a package, installed here or below a given path. Nothing is imported.

    Raises SetupError, naming the option, if it is not there.
    """
    if given is None:
        return _installed(name, member, option)
    for path in (given, given / Path(member).name, given / member):
        if path.name == Path(member).name and path.exists():
            return Package(path, _version_beside(path, name))
    raise SetupError(f"No {member} at {given}.", hint=f"Give the folder into which {name} is installed: {option} PATH")


def _installed(name: str, member: str, option: str) -> Package:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise SetupError(
            f"The package {name} is not installed.",
            hint=f"Install it apart: pip install --no-deps --target maps {name}, and give the folder: {option} maps",
        ) from None
    return Package(Path(str(found.locate_file(member))), found.version)


def _version_beside(path: Path, name: str) -> str:
    """The version in the name of the metadata folder beside the package."""
    for folder in (path.parent, path.parent.parent):
        for found in sorted(folder.glob(f"{name.replace('-', '_')}-*.dist-info")):
            return found.name.removesuffix(".dist-info").rpartition("-")[2]
    return UNKNOWN_VERSION
