"""The sections about teams and their spending: budgets, attribution to projects, prices of models that have none."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mcpmeter.budgets.period import is_time_zone
from mcpmeter.config.faults import nearest
from mcpmeter.config.fields import (
    INSTANT_SENTENCE,
    ModelName,
    Name,
    Section,
    Switch,
    TeamName,
    Whole,
    decimal,
    matching,
    must,
    name_alone,
    setting,
)
from mcpmeter.money import MAX_NANOUSD, nanousd_to_usd

FIRST_YEAR, LAST_YEAR = 1970, 2200
NOT_FOR_PROJECTS: Final = frozenset({"authorization", "cookie", "host", "x-api-key", "x-goog-api-key", "traceparent"})


def _zone(name: str) -> str:
    if is_time_zone(name):
        return name
    advice = nearest(name, sorted(filter(is_time_zone, available_timezones())))
    raise must(f"names no time zone{advice if 'did you mean' in advice else '; write one such as Europe/Berlin'}")


def _instant(text: str) -> str:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise must(INSTANT_SENTENCE) from None
    if not FIRST_YEAR < instant.year < LAST_YEAR:
        raise must(f"must lie after {FIRST_YEAR} and before {LAST_YEAR}")
    return text


def _exact(amount: Decimal) -> Decimal:
    if amount > nanousd_to_usd(MAX_NANOUSD):
        raise must("must be at most 9 billion")
    if amount != amount.quantize(nanousd_to_usd(1)):
        raise must("must have at most nine decimals: money is kept in whole nano-dollars")
    return amount


def _header(name: str) -> str:
    if name.lower() in NOT_FOR_PROJECTS or name.lower().startswith("content-"):
        raise must("must not be a header with another meaning; use one such as X-Mcpmeter-Project")
    return name.lower()


Dollars = Annotated[Decimal, BeforeValidator(decimal), Field(ge=0, allow_inf_nan=False), AfterValidator(_exact)]
SoftShare = Annotated[Decimal, BeforeValidator(decimal), Field(gt=0, le=1, allow_inf_nan=False)]
Price = Annotated[Decimal, BeforeValidator(decimal), Field(gt=0, le=100_000, allow_inf_nan=False)]
StartDay = Annotated[Whole, Field(ge=1, le=31)]
TimeZone = Annotated[str, AfterValidator(_zone)]
Start = Annotated[str, AfterValidator(_instant)]
HeaderName = Annotated[
    str,
    AfterValidator(matching(r"[A-Za-z][A-Za-z0-9-]{0,62}", "must be a header's name: letters, digits and '-'")),
    AfterValidator(_header),
]


class TeamSettings(Section):
    """A team that calls are charged to: a mapping, or its name as text."""

    name: TeamName = setting(help="The team's name, a label in metrics and the ledger.", example="search")
    projects: tuple[TeamName, ...] = setting(
        (), help="The team's projects; keys and budgets may name them.", example=["web", "mobile"]
    )
    time_zone: TimeZone = setting(
        "UTC",
        help="Time zone of the days, weeks and months of its budgets, from the IANA database.",
        example="Europe/Berlin",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return name_alone(value, cls, "must be the team's name, in quotes")


class BudgetSettings(Section):
    """A limit on the cost of calls in a period. A call counts if it matches every one of team, project, key and model
    that is given.
    """

    name: Name = setting(help="The budget's name in metrics, refusals and commands.", example="search-monthly")
    limit_usd: Dollars = setting(
        help="Maximum cost of its calls in one period, in US dollars; top-ups are added to it.",
        example=Decimal(500),
    )
    period: Literal["day", "week", "month", "once"] = setting(
        "month", help="How often the budget resets. `once` is a prepaid credit, which never resets.", example="week"
    )
    team: TeamName | None = setting(None, help="Only calls of this team; default: all teams.", example="search")
    project: TeamName | None = setting(None, help="Only calls for this project.", example="web")
    key: TeamName | None = setting(
        None,
        help="Only calls with this key: its name in `keys`, or the id that `mcpmeter keys list` shows.",
        example="ci",
    )
    model: ModelName | None = setting(
        None, help="Only calls to this model, by its name at the provider.", example="claude-sonnet-4.5"
    )
    start_day: StartDay | None = setting(
        None,
        help="First day of the month (1 to 31, or the last of a shorter month) or week (1 is Monday); default: 1.",
        example=6,
    )
    start: Start | None = setting(
        None, help="Required with `once`: calls from this date or instant on count.", example="2027-01-01"
    )
    time_zone: TimeZone | None = setting(
        None, help="Time zone of its periods; default: the team's, else UTC.", example="America/New_York"
    )
    soft: tuple[SoftShare, ...] = setting(
        (Decimal("0.8"),),
        help="Shares of the limit at which the log and the metrics warn.",
        example=[Decimal("0.5"), Decimal("0.8")],
    )
    hard: Switch = setting(True, help="Refuse calls beyond the limit with 402; `false` only warns.", example=False)

    @model_validator(mode="after")
    def _fits_its_period(self) -> BudgetSettings:
        if self.period == "once" and self.start is None:
            raise must("is prepaid ('period: once'); add 'start', the date from which calls count")
        if self.period != "once" and self.start is not None:
            raise must("has 'start', which is for 'period: once'; a month or week has 'start_day'")
        if self.period not in ("week", "month") and self.start_day is not None:
            raise must("has 'start_day', which is for months and weeks; remove it")
        if self.period == "week" and (self.start_day or 1) > 7:
            raise must("has a week that starts after day 7; 1 is Monday, 7 is Sunday")
        return self

    def start_ns(self, time_zone: str) -> int:
        """`start` in Unix nanoseconds; without an offset it is in this time zone."""
        if self.start is None:
            return 0
        instant = datetime.fromisoformat(self.start)
        aware = instant if instant.tzinfo is not None else instant.replace(tzinfo=ZoneInfo(time_zone))
        return int(aware.timestamp()) * 10**9


class AttributionSettings(Section):
    """A request header that names the project of a call, instead of its key's project."""

    header: HeaderName = setting("x-mcpmeter-project", help="The header's name.", example="OpenAI-Project")
    values: tuple[TeamName, ...] = setting(
        (),
        help="Projects that the header may name; others are refused. If empty, the header is ignored.",
        example=["web"],
    )


class FallbackSettings(Section):
    """Prices at which models and items without a price count against budgets. No report adds them to the cost."""

    prompt_usd_per_mtok: Price = setting(
        Decimal(3), help="US dollars per million prompt tokens.", example=Decimal("2.5")
    )
    completion_usd_per_mtok: Price = setting(
        Decimal(15), help="US dollars per million completion tokens.", example=Decimal(10)
    )
    per_unit_usd: Price = setting(
        Decimal("0.05"),
        help="US dollars per search, session or other unit that is no token.",
        example=Decimal("0.01"),
    )
