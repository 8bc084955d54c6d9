"""The one strict settings tree: read from a YAML file or from the environment, every fault named with its line."""

from mcpmeter.config.loading import find_file, load, load_monitoring
from mcpmeter.config.prices import price_book
from mcpmeter.config.rules import is_loopback, refuse_open_bind
from mcpmeter.config.settings import (
    CurrencySettings,
    KeySettings,
    LedgerSettings,
    MetricsSettings,
    PricingSettings,
    ProviderSettings,
    RelaySettings,
    ServerSettings,
    Settings,
    TeamSettings,
    TimeoutSettings,
)

__all__ = [
    "CurrencySettings",
    "KeySettings",
    "LedgerSettings",
    "MetricsSettings",
    "PricingSettings",
    "ProviderSettings",
    "RelaySettings",
    "ServerSettings",
    "Settings",
    "TeamSettings",
    "TimeoutSettings",
    "find_file",
    "is_loopback",
    "load",
    "load_monitoring",
    "price_book",
    "refuse_open_bind",
]
