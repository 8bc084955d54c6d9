"""The sections about who pays and how much: teams, budgets, attribution to projects, the price of what has none."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mcpmeter.budgets.period import is_time_zone
from mcpmeter.config.faults import nearest
from mcpmeter.config.fields import ModelName, Name, Section, Switch, TeamName, Whole, decimal, matching, must, setting
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
        raise must("must be a date, or an instant such as 2027-01-31T12:00:00Z") from None
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
        raise must("must not be a header that means something else; take one such as X-Mcpmeter-Project")
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
    """A team that calls are charged to. Its name alone, as text, will do."""

    name: TeamName = setting(help="The team's name, a label in metrics and the ledger.", example="search")
    projects: tuple[TeamName, ...] = setting(
        (), help="What the team works on; keys and budgets may name them.", example=["web", "mobile"]
    )
    time_zone: TimeZone = setting(
        "UTC", help="Where days, weeks and months of its budgets begin, by the IANA database.", example="Europe/Berlin"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict | TeamSettings):
            raise must("must be the team's name, in quotes")
        return value


class BudgetSettings(Section):
    """What calls may cost in a period. Of team, project, key and model those that are given must all fit a call."""

    name: Name = setting(help="The budget's name in metrics, refusals and commands.", example="search-monthly")
    limit_usd: Dollars = setting(
        help="The most that its calls may cost in one period, in US dollars; what is topped up comes on top.",
        example=Decimal(500),
    )
    period: Literal["day", "week", "month", "once"] = setting(
        "month", help="When it starts anew. `once` is a prepaid credit, which never does.", example="week"
    )
    team: TeamName | None = setting(None, help="Calls of this team; of all teams unless given.", example="search")
    project: TeamName | None = setting(None, help="Calls for this project.", example="web")
    key: TeamName | None = setting(
        None, help="Calls with this key: its name in `keys`, or the id that `mcpmeter keys list` shows.", example="ci"
    )
    model: ModelName | None = setting(
        None, help="Calls of this model, by its name at the provider.", example="claude-sonnet-4.5"
    )
    start_day: StartDay | None = setting(
        None,
        help="First day of a month (1 to 31; in shorter months the last) or of a week (1 is Monday); 1 unless given.",
        example=6,
    )
    start: Start | None = setting(
        None, help="With `once`: calls from this date or instant on count. Needed there.", example="2027-01-01"
    )
    time_zone: TimeZone | None = setting(
        None, help="Where its periods begin; the team's unless given, else UTC.", example="America/New_York"
    )
    soft: tuple[SoftShare, ...] = setting(
        (Decimal("0.8"),),
        help="Shares of the limit at which the log and the metrics say that it runs low.",
        example=[Decimal("0.5"), Decimal("0.8")],
    )
    hard: Switch = setting(
        True, help="Refuse calls beyond the limit with 402; `false` only tells of them.", example=False
    )

    @model_validator(mode="after")
    def _fits_its_period(self) -> BudgetSettings:
        if self.period == "once" and self.start is None:
            raise must("is prepaid ('period: once'); add 'start', the date from which calls count")
        if self.period != "once" and self.start is not None:
            raise must("has 'start', which is for 'period: once'; a month or week has 'start_day'")
        if self.period not in ("week", "month") and self.start_day is not None:
            raise must("has 'start_day', which is for months and weeks; take it out")
        if self.period == "week" and (self.start_day or 1) > 7:
            raise must("has a week that starts after day 7; 1 is Monday, 7 is Sunday")
        return self

    def start_ns(self, time_zone: str) -> int:
        """The instant that `start` names, in Unix nanoseconds; by the zone's clocks where it names no offset."""
        if self.start is None:
            return 0
        instant = datetime.fromisoformat(self.start)
        placed = instant if instant.tzinfo is not None else instant.replace(tzinfo=ZoneInfo(time_zone))
        return int(placed.timestamp()) * 10**9


class AttributionSettings(Section):
    """A request header that names the project a call is for, in place of its key's."""

    header: HeaderName = setting("x-mcpmeter-project", help="The header's name.", example="OpenAI-Project")
    values: tuple[TeamName, ...] = setting(
        (), help="Projects that it may name; any other is refused. None: the header is not read.", example=["web"]
    )


class FallbackSettings(Section):
    """What a model without a price counts against budgets. It is no cost: no report adds it to one."""

    prompt_usd_per_mtok: Price = setting(
        Decimal(3), help="US dollars for a million prompt tokens.", example=Decimal("2.5")
    )
    completion_usd_per_mtok: Price = setting(
        Decimal(15), help="US dollars for a million completion tokens.", example=Decimal(10)
    )
