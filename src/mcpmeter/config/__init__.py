"""The one strict settings tree: read from a YAML file or from the environment, every fault named with its line."""

from mcpmeter.config.budgets import AttributionSettings, BudgetSettings, FallbackSettings, TeamSettings
from mcpmeter.config.limits import attribution_of, budgets_of
from mcpmeter.config.loading import find_file, load, load_monitoring, load_sections
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
    TimeoutSettings,
)

__all__ = [
    "AttributionSettings",
    "BudgetSettings",
    "CurrencySettings",
    "FallbackSettings",
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
    "attribution_of",
    "budgets_of",
    "find_file",
    "is_loopback",
    "load",
    "load_monitoring",
    "load_sections",
    "price_book",
    "refuse_open_bind",
]
