"""Every alert, one file each: a module here with `NAME`, `PARAMETERS` and `alert(q)`. Adding one is one file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType

from mcpmeter.monitoring.alert import Alert
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.queries import Parameter, Queries


def alerts(options: MonitoringOptions) -> tuple[Alert, ...]:
    """All alerts but those left out, by name."""
    made = (
        module.alert(Queries(options, options.thresholds.get(module.NAME)))
        for module in _modules()
        if module.NAME not in options.without
    )
    return tuple(sorted(made, key=lambda alert: alert.name))


def parameters() -> Mapping[str, tuple[Parameter, ...]]:
    """What may be set, by alert."""
    return {module.NAME: module.PARAMETERS for module in sorted(_modules(), key=lambda module: str(module.NAME))}


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(__path__):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"{__name__}.{found.name}")
