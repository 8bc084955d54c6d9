"""Every alert, one file each: a module with `NAME`, `PARAMETERS` and `alert(q)`. Adding an alert is adding a file.

Modules whose name starts with an underscore hold code that several alerts share.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType

from mcpmeter.monitoring.alert import Alert
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.queries import Parameter, Queries


def alerts(options: MonitoringOptions) -> tuple[Alert, ...]:
    """All alerts except those in `options.without`, sorted by name."""
    made = (
        module.alert(Queries(options, options.thresholds.get(module.NAME)))
        for module in _modules()
        if module.NAME not in options.without
    )
    return tuple(sorted(made, key=lambda alert: alert.name))


def parameters() -> Mapping[str, tuple[Parameter, ...]]:
    """The parameters of each alert."""
    return {module.NAME: module.PARAMETERS for module in sorted(_modules(), key=lambda module: str(module.NAME))}


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(__path__):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"{__name__}.{found.name}")
