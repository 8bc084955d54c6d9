"""Configured budgets become budgets of calls: names to ids, dollars to nano-dollars, time zones to periods."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from mcpmeter.access.callers import Attribution
from mcpmeter.access.keys import key_from_config
from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.period import Period
from mcpmeter.config import Settings, attribution_of, budgets_of, load, price_book
from mcpmeter.records import Scope, Usage

ENVIRON = {"OPENAI_API_KEY": "sk-openai-0001"}
SECRET = "q7Zk2vXw9LtRbN4mJcHs8dPfYg3eUaT5"


def loaded(folder: Path, text: str) -> Settings:
    path = folder / "mcpmeter.yaml"
    path.write_text(text)
    return load(path, ENVIRON)


def only(folder: Path, text: str) -> Budget:
    (budget,) = budgets_of(loaded(folder, text))
    return budget


def test_a_budget_is_monthly_hard_and_warns_at_80_percent_by_default(tmp_path: Path) -> None:
    budget = only(tmp_path, "budgets:\n  - name: search\n    team: search\n    limit_usd: 500\n")
    assert budget == Budget("search", Scope(team="search"), 500 * 10**9, Period("month", "UTC", 1), (Decimal("0.8"),))
    assert budget.refuses


PAGE = (Path(__file__).parents[2] / "docs" / "budgets.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES, ids=["three lines", "everything"])
def test_the_examples_of_the_budgets_page_load(tmp_path: Path, text: str) -> None:
    names = [budget.name for budget in budgets_of(loaded(tmp_path, text))]
    assert names == re.findall(r"name: (\S+-(?:monthly|daily|weekly|credit))", text)


def test_without_budgets_there_is_no_limit(tmp_path: Path) -> None:
    assert list(budgets_of(loaded(tmp_path, "server: {}"))) == list(Budgets()) == []


@pytest.mark.parametrize(
    ("limit", "nanousd"), [("0.000000001", 1), ("0.1", 10**8), ("9000000000", 9 * 10**18), ("'12.50'", 12_500_000_000)]
)
def test_limits_are_exact_to_the_nano_dollar(tmp_path: Path, limit: str, nanousd: int) -> None:
    assert only(tmp_path, f"budgets: [{{name: b, limit_usd: {limit}}}]").limit_nanousd == nanousd


def test_a_budgets_time_zone_is_its_own_else_the_teams_else_utc(tmp_path: Path) -> None:
    text = """\
teams: [{name: search, time_zone: Asia/Tokyo}, support]
budgets:
  - {name: own, team: search, limit_usd: 1, time_zone: Europe/Berlin}
  - {name: of-team, team: search, limit_usd: 1}
  - {name: of-support, team: support, limit_usd: 1}
  - {name: of-all, limit_usd: 1}
"""
    zones = [budget.period.time_zone for budget in budgets_of(loaded(tmp_path, text))]
    assert zones == ["Europe/Berlin", "Asia/Tokyo", "UTC", "UTC"]


def test_a_budget_names_a_key_by_name_or_id(tmp_path: Path) -> None:
    text = f"""\
keys: [{{name: ci, team: search, secret: {SECRET}}}]
budgets:
  - {{name: by-name, key: ci, limit_usd: 1}}
  - {{name: by-id, key: key_0123456789ab, limit_usd: 1}}
"""
    by_name, by_id = budgets_of(loaded(tmp_path, text))
    assert by_name.scope == Scope(key_id=key_from_config(name="ci", team="search", secret=SECRET).id)
    assert by_id.scope == Scope(key_id="key_0123456789ab")


def test_a_scope_may_have_every_part(tmp_path: Path) -> None:
    text = f"""\
teams: [{{name: search, projects: [web]}}]
keys: [{{name: ci, team: search, secret: {SECRET}}}]
budgets: [{{name: b, team: search, project: web, key: ci, model: gpt-4.1, limit_usd: 1, period: week, start_day: 7}}]
"""
    budget = only(tmp_path, text)
    assert (budget.scope.team, budget.scope.project, budget.scope.model) == ("search", "web", "gpt-4.1")
    assert budget.scope.key_id.startswith("key_")
    assert budget.period == Period("week", "UTC", 7)


@pytest.mark.parametrize(
    ("start", "unix_s"),
    [
        ("2027-01-01", 1_798_758_000),  # midnight in Berlin
        ("2027-01-01T00:00:00Z", 1_798_761_600),
        ("2027-01-01T00:00:00+09:00", 1_798_729_200),
    ],
)
def test_a_prepaid_start_is_in_its_time_zone_unless_it_has_an_offset(tmp_path: Path, start: str, unix_s: int) -> None:
    text = f"budgets: [{{name: b, limit_usd: 0, period: once, start: '{start}', time_zone: Europe/Berlin}}]"
    assert only(tmp_path, text).period == Period("once", "Europe/Berlin", 1, unix_s * 10**9)


def test_a_project_may_be_known_from_the_header_alone(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "attribution: {values: [web]}\nbudgets: [{name: b, project: web, limit_usd: 1}]")
    assert settings.attribution.header == "x-mcpmeter-project"
    assert [budget.scope for budget in budgets_of(settings)] == [Scope(project="web")]


def test_the_header_is_ignored_without_configured_projects(tmp_path: Path) -> None:
    assert attribution_of(loaded(tmp_path, "attribution: {header: X-Project}")) is None
    attribution = attribution_of(loaded(tmp_path, "attribution: {header: X-Project, values: [web]}"))
    assert attribution == Attribution(header="x-project", values=("web",))


def test_a_project_may_be_known_from_a_key_alone(tmp_path: Path) -> None:
    key = f"keys: [{{name: ci, team: search, project: web, secret: {SECRET}}}]"
    budget = only(tmp_path, f"{key}\nbudgets: [{{name: b, team: search, project: web, limit_usd: 1}}]")
    assert budget.scope == Scope(team="search", project="web")


def test_a_soft_budget_with_several_thresholds(tmp_path: Path) -> None:
    budget = only(tmp_path, "budgets: [{name: b, limit_usd: 10, soft: [0.9, 0.5], hard: false}]")
    assert not budget.refuses
    assert budget.soft_limits() == [5 * 10**9, 9 * 10**9]


def test_a_faulty_team_causes_no_fault_about_budgets(tmp_path: Path) -> None:
    text = "teams: [{name: search, projects: [web], zone: x}]\nbudgets: [{name: b, project: web, limit_usd: 1}]"
    with pytest.raises(Exception, match="unknown key 'zone'") as caught:
        loaded(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("fallback", "nanousd"), [("{}", 3_000 + 15_000), ("{fallback: {completion_usd_per_mtok: 1}}", 3_000 + 1_000)]
)
def test_an_unpriced_model_counts_at_the_fallback_price(tmp_path: Path, fallback: str, nanousd: int) -> None:
    book = price_book(loaded(tmp_path, f"pricing: {fallback}"))
    usage = Usage(prompt_tokens=1, completion_tokens=1, source="reported")
    charge = book.charge("openai", "unpriced-model", usage, 0)
    assert (charge.source, charge.nanousd, charge.fallback_nanousd) == ("unpriced", 0, nanousd)
