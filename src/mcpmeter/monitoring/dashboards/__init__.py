"""Grafana's dashboards: a module beside this one that holds a `PAGE` is a dashboard; adding one is one file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from mcpmeter.monitoring.dashboards.spec import Page

MADE: Final = "made"
"""Folder of the JSON that `make dashboards` writes with Grafana's SDK, which the product then does without."""


def pages() -> Mapping[str, Page]:
    """Name of the file to the dashboard, by name."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if name.startswith("_"):
            continue  # these need the SDK
        page = getattr(importlib.import_module(f"{__name__}.{name}"), "PAGE", None)
        if isinstance(page, Page):
            found[name] = page
    return found


def made(name: str) -> str:
    """The JSON of one dashboard as it was made last, options not applied."""
    return (files(__name__) / MADE / f"{name}.json").read_text(encoding="utf-8")
