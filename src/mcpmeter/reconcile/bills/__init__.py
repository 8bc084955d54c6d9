"""Bill formats: each module of this folder with a `FORMAT` reads one provider's export."""

from __future__ import annotations

import importlib
import pkgutil

from mcpmeter.reconcile.bills.base import BillFormat


def formats() -> dict[str, BillFormat]:
    """Every format, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found: list[BillFormat] = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return {format_.name: format_ for format_ in found}
