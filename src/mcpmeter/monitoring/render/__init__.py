"""Renders the files of `deploy/`. Each module here with `render(options)` is a renderer."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType

from mcpmeter.monitoring.options import MonitoringOptions


def files(options: MonitoringOptions) -> dict[str, str]:
    """Relative path -> content, sorted by path. Each path has one renderer."""
    found: dict[str, str] = {}
    for module in renderers():
        made: Mapping[str, str] = module.render(options)
        if twice := found.keys() & made.keys():
            raise ValueError(f"{module.__name__} renders {sorted(twice)}, which another renderer renders too")
        found.update(made)
    return dict(sorted(found.items()))


def renderers() -> Iterator[ModuleType]:
    """The renderers, sorted by name. Modules whose name starts with an underscore are not renderers."""
    for found in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"{__name__}.{found.name}")
