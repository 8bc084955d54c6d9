"""What differs between two configurations, by name and without a secret."""

from __future__ import annotations

from decimal import Decimal

from pydantic import SecretStr

from mcpmeter.config import (
    BudgetSettings,
    LedgerSettings,
    ProviderSettings,
    ServerSettings,
    Settings,
    changes_between,
)
from mcpmeter.ledger.location import location_of

DEFAULTS = Settings()


def test_equal_configurations_differ_in_nothing():
    assert changes_between(DEFAULTS, Settings()) == {}


def test_numbers_and_known_texts_are_shown_before_and_after():
    new = Settings(server=ServerSettings(host="0.0.0.0", max_body_bytes=1024), aliases={"fast": "openai/gpt-4.1-mini"})
    assert changes_between(DEFAULTS, new) == {
        "server.host": ["127.0.0.1", "0.0.0.0"],
        "server.max_body_bytes": [10_485_760, 1024],
        "aliases.fast": [None, "openai/gpt-4.1-mini"],
    }


def test_of_addresses_and_secrets_only_the_name_is_shown():
    old, new = (
        Settings(
            ledger=LedgerSettings().at(location_of(f"postgresql://u:password{n}@h/db")),
            providers=(ProviderSettings(name="holysheep", base_url=f"http://h{n}/v1", api_key=SecretStr(f"sk-{n}")),),
        )
        for n in "12"
    )
    assert changes_between(old, new) == {
        "ledger.url": "changed",
        "providers.holysheep.base_url": "changed",
        "providers.holysheep.api_key": "changed",
    }


def test_a_removed_budget_shows_its_limit():
    budget = BudgetSettings(name="b", limit_usd=Decimal("12.50"))
    assert changes_between(Settings(budgets=(budget,)), DEFAULTS) == {
        "budgets.b": "removed",
        "budgets.b.limit_usd": ["12.50", None],
    }
