"""LLM cost and tokens: who spends what on which model, how far it is from a limit, and where the figures are from."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import budget, llm, money, quality
from mcpmeter.monitoring.dashboards.promql import PageQueries, share, yes
from mcpmeter.monitoring.dashboards.spec import (
    BAD,
    CALLER,
    OK,
    SERVED,
    TOOL,
    UPSTREAM,
    WARN,
    Page,
    Panel,
    Query,
    Row,
    Sentence,
    verdict,
)

q: Final = PageQueries("team", "model", "provider")
HOUR: Final = 3600
REPORTED: Final = 'source="reported"'
EACH: Final = ("team", "budget")
SPENT: Final = q.greatest(budget.SPENT, *EACH)
LIMIT: Final = f"({q.greatest(budget.LIMIT, *EACH)} > 0)"
USED: Final = f"({SPENT} / {LIMIT})"
EXHAUSTED_AT: Final = f"({q.greatest(budget.EXHAUSTION, *EACH)} > 0)"
"""0 says that nothing burns, which is no instant."""

ENDS_AT: Final = f"({q.greatest(budget.PERIOD_END, *EACH)} > 0)"


def _tile(title: str, why: str, expr: str, unit: str, warn: float | None = None) -> Panel:
    steps: tuple[tuple[float | None, str], ...] = ((None, SERVED),)
    return Panel(
        title,
        why,
        (Query(expr, title),),
        unit,
        kind="stat",
        width=4,
        height=4,
        thresholds=steps if warn is None else (*steps, (warn, WARN)),
        decimals=2 if unit == "currencyUSD" else None,
    )


SPEND: Final = Row(
    "What it costs",
    (
        verdict(
            "All is well: every budget lasts, every call has a price",
            (
                Sentence(
                    yes(f"{q.grown(money.UNPRICED)} > bool 0"),
                    "Some calls have no price: the cost shown is too low",
                    WARN,
                ),
                Sentence(
                    yes(f"abs({q.greatest(money.COST_DRIFT, 'provider')} - 1) > bool 0.05"),
                    "A provider bills another price than its list says: see Drift",
                    WARN,
                ),
                Sentence(
                    yes(f"{SPENT} > bool ({q.greatest(budget.SOFT_LIMIT, *EACH)} > 0)"),
                    "A budget runs low: its soft limit is passed",
                    WARN,
                ),
                Sentence(
                    yes(f"{EXHAUSTED_AT} < bool {ENDS_AT}"),
                    "A budget will not last: at this rate it is gone before its period ends",
                    BAD,
                ),
                Sentence(
                    yes(f"{q.grown(budget.REFUSALS)} > bool 0"),
                    "A budget has no room left: calls are refused, the table says whose",
                    BAD,
                ),
            ),
            "Read this first. The budgets below come from the ledger; they survive restarts, which counters do not.",
        ),
        _tile("Cost in this time", "Priced calls in the time shown.", q.grown(money.COST), "currencyUSD"),
        _tile("Cost an hour", "At the rate of now.", f"{HOUR} * {q.rate(money.COST)}", "currencyUSD"),
        _tile("Tokens in this time", "Prompt and completion together.", q.grown(llm.TOKENS), "short"),
        _tile(
            "Cost told by providers",
            "Share of the cost that providers reported themselves; the rest is from a dated price list.",
            share(q.grown(money.COST, where=REPORTED), q.grown(money.COST)),
            "percentunit",
        ),
        _tile(
            "Tokens not reported",
            "Share of tokens that we estimated or saw only in part, since no usage came.",
            share(q.grown(llm.TOKENS, where='source!="reported"'), q.grown(llm.TOKENS)),
            "percentunit",
            0.05,
        ),
        _tile(
            "Calls without a price",
            "Their cost is missing from every figure here. Add a price list, or announce the model.",
            q.grown(money.UNPRICED),
            "short",
            1,
        ),
        Panel(
            "Cost by team",
            "US dollars an hour.",
            (Query(f"{HOUR} * {q.rate(money.COST, 'team')}", "{{team}}"),),
            "currencyUSD",
            stacked=True,
        ),
        Panel(
            "Cost by model",
            "US dollars an hour.",
            (Query(f"{HOUR} * {q.rate(money.COST, 'model')}", "{{model}}"),),
            "currencyUSD",
            stacked=True,
        ),
        Panel(
            "Cost by provider",
            "US dollars an hour, and where the figure is from: reported by the provider, or listed with a date.",
            (Query(f"{HOUR} * {q.rate(money.COST, 'provider', 'source')}", "{{provider}}, {{source}}"),),
            "currencyUSD",
            stacked=True,
        ),
        Panel(
            "Who spends on what",
            "The time shown, by team and model.",
            (
                Query(f"{q.grown(money.COST, 'team', 'model')} > 0", "Cost"),
                Query(f"{q.grown(llm.TOKENS, 'team', 'model')} > 0", "Tokens"),
                Query(
                    f"1e6 * {q.grown(money.COST, 'team', 'model')} / ({q.grown(llm.TOKENS, 'team', 'model')} > 0)",
                    "A million tokens",
                ),
            ),
            "short",
            kind="table",
            width=24,
            units={"Cost": "currencyUSD", "A million tokens": "currencyUSD"},
            decimals=2,
        ),
    ),
)

BUDGETS: Final = Row(
    "Budgets, by the ledger",
    (
        Panel(
            "Budgets",
            "Each budget's present period: spent, set aside for calls under way, its limit, and when it is gone at "
            "this rate. Every replica shows the same, from the ledger.",
            (
                Query(USED, "Used"),
                Query(SPENT, "Spent"),
                Query(q.greatest(budget.RESERVED, *EACH), "Set aside"),
                Query(q.greatest(budget.SOFT_LIMIT, *EACH), "Soft limit"),
                Query(q.greatest(budget.LIMIT, *EACH), "Limit"),
                Query(f"clamp_min({EXHAUSTED_AT} - time(), 0)", "Gone in"),
                Query(f"clamp_min({ENDS_AT} - time(), 0)", "Begins anew in"),
            ),
            "currencyUSD",
            kind="table",
            width=24,
            height=6,
            units={"Used": "percentunit", "Gone in": "s", "Begins anew in": "s"},
            decimals=2,
        ),
        Panel(
            "Used of each limit",
            "Share of the limit that the present period has spent. At the upper mark a hard one refuses calls.",
            (Query(USED, "{{team}} {{budget}}"),),
            "percentunit",
            width=12,
            greatest=1,
            thresholds=((None, OK), (0.8, WARN), (1, BAD)),
        ),
        Panel(
            "Refused for want of budget",
            "Calls a second that were refused because the most that they could cost did not fit.",
            (Query(q.rate(budget.REFUSALS, *EACH), "{{team}} {{budget}}"),),
            "reqps",
            width=6,
            stacked=True,
        ),
        Panel(
            "Counted by the fallback price",
            "Calls a second without a price, which count against budgets by the fallback price and are no cost.",
            (Query(q.rate(budget.FALLBACK_PRICED, "provider"), "{{provider}}"),),
            "reqps",
            width=6,
            stacked=True,
        ),
    ),
)

TOKENS: Final = Row(
    "Tokens",
    (
        Panel(
            "Tokens by kind",
            "Tokens a second. A completion token costs several prompt tokens.",
            (Query(q.rate(llm.TOKENS, "token_type"), "{{token_type}}"),),
            "short",
            stacked=True,
        ),
        Panel(
            "Of these",
            "Parts of the tokens beside, not more of them: read from the cache, written to it, spent on reasoning.",
            (Query(q.rate(llm.TOKEN_DETAILS, "detail"), "{{detail}}"),),
            "short",
        ),
        Panel(
            "Where the count is from",
            "Reported by the provider, or estimated by us, or partial: the client or the upstream left in between.",
            (Query(q.rate(llm.TOKENS, "source"), "{{source}}"),),
            "short",
            colours={"reported": SERVED, "estimated": WARN, "partial": UPSTREAM},
            stacked=True,
        ),
    ),
)

TRUST: Final = Row(
    "How far the figures can be trusted",
    (
        Panel(
            "Drift",
            "What a provider reported by what its list says, since start; 1 is no drift. Off it, the list is too old.",
            (Query(q.greatest(money.COST_DRIFT, "provider"), "{{provider}}"),),
            "none",
            thresholds=((None, WARN), (0.95, OK), (1.05, WARN)),
            least=0.9,
            greatest=1.1,
            decimals=3,
        ),
        Panel(
            "Why there is no price",
            "Calls a second, by why no price was found.",
            (Query(q.moving(money.UNPRICED, "provider", "reason"), "{{provider}}: {{reason}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Why there is no usage",
            "Calls a second whose provider told no tokens, by why.",
            (Query(q.moving(llm.USAGE_MISSING, "provider", "reason"), "{{provider}}: {{reason}}"),),
            "reqps",
            stacked=True,
        ),
    ),
)

ANSWERS: Final = Row(
    "What comes for the money",
    (
        Panel(
            "Time to the first chunk, p95",
            "What a person waits for before a stream begins, by model.",
            (Query(q.quantile(0.95, llm.TIME_TO_FIRST_CHUNK, "gen_ai_request_model"), "{{gen_ai_request_model}}"),),
            "s",
        ),
        Panel(
            "Tokens a second, p50",
            "How fast answers are written, by model, the wait for the first one included.",
            (Query(q.quantile(0.5, quality.OUTPUT_RATE, "model"), "{{model}}"),),
            "short",
        ),
        Panel(
            "Answers that are none",
            "Empty, cut off at a limit of tokens, or refused, a second: failures that every HTTP status calls 200.",
            (
                Query(q.rate(quality.EMPTY), "empty"),
                Query(q.rate(quality.TRUNCATIONS), "cut off"),
                Query(q.rate(quality.REFUSALS), "refused"),
            ),
            "reqps",
            colours={"empty": CALLER, "cut off": TOOL, "refused": UPSTREAM},
        ),
    ),
)

PAGE: Final = Page(
    uid="mcpmeter-llm",
    title="mcpmeter: LLM cost and tokens",
    description="Who spends what on which model, how far it is from a limit, and where each figure is from.",
    rows=(SPEND, BUDGETS, TOKENS, TRUST, ANSWERS),
    wanted=("team", "model", "provider"),
)
