"""The settings tree: read from one YAML file or from the environment, strictly.

Owns what the file may contain (`settings.py` and a module per group of sections), how YAML is read (`document.py`),
the rules between sections (`rules.py`) and the conversion to what the other packages take. Runs nothing and opens
no ledger.

Invariants: an unknown key is an error; all faults of a file are reported at once, each with its line; no message
repeats a value from the file; settings never change after loading.
"""

from mcpmeter.config.budgets import AttributionSettings, BudgetSettings, FallbackSettings, TeamSettings
from mcpmeter.config.changes import changes_between
from mcpmeter.config.keys import KeySettings
from mcpmeter.config.limits import attribution_of, budgets_of
from mcpmeter.config.loading import find_file, load, load_monitoring, load_sections
from mcpmeter.config.prices import price_book
from mcpmeter.config.relay import ProviderSettings, RelaySettings, TimeoutSettings
from mcpmeter.config.rules import EVERY_ADDRESS, Listener, is_loopback, listeners, refuse_open_bind
from mcpmeter.config.server import ServerLimitSettings, ServerTimeoutSettings
from mcpmeter.config.settings import (
    AdminSettings,
    CurrencySettings,
    LedgerSettings,
    MetricsSettings,
    PricingSettings,
    ServerSettings,
    Settings,
)

__all__ = [
    "EVERY_ADDRESS",
    "AdminSettings",
    "AttributionSettings",
    "BudgetSettings",
    "CurrencySettings",
    "FallbackSettings",
    "KeySettings",
    "LedgerSettings",
    "Listener",
    "MetricsSettings",
    "PricingSettings",
    "ProviderSettings",
    "RelaySettings",
    "ServerLimitSettings",
    "ServerSettings",
    "ServerTimeoutSettings",
    "Settings",
    "TeamSettings",
    "TimeoutSettings",
    "attribution_of",
    "budgets_of",
    "changes_between",
    "find_file",
    "is_loopback",
    "listeners",
    "load",
    "load_monitoring",
    "load_sections",
    "price_book",
    "refuse_open_bind",
]
