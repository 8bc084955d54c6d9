"""Grafana dashboards: each module here with a `PAGE` is one. Adding a dashboard is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from mcpmeter.monitoring.dashboards.spec import Page

MADE: Final = "made"
"""Folder of the generated JSON. Only `make docs` needs Grafana's SDK; the product reads these files."""


def pages() -> Mapping[str, Page]:
    """Module name -> dashboard, sorted by name."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if name.startswith("_"):
            continue  # needs the SDK
        page = getattr(importlib.import_module(f"{__name__}.{name}"), "PAGE", None)
        if isinstance(page, Page):
            found[name] = page
    return found


def made(name: str) -> str:
    """The generated JSON of one dashboard, without the options applied."""
    return (files(__name__) / MADE / f"{name}.json").read_text(encoding="utf-8")
