"""Providers' bills, one file an export: a module of this folder that holds `FORMAT` is a format."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from mcpmeter.reconcile.bills.base import BillFormat


@cache
def formats() -> dict[str, BillFormat]:
    """Every format by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found: list[BillFormat] = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return {format_.name: format_ for format_ in found}
