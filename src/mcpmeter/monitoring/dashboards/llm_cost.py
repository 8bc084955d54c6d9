"""LLM cost and tokens: spending by team and model, budgets, and the source of each figure."""

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
    tile,
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
"""0 means that nothing is spent; it is not a timestamp."""

ENDS_AT: Final = f"({q.greatest(budget.PERIOD_END, *EACH)} > 0)"


def _tile(title: str, why: str, expr: str, unit: str, warn: float | None = None) -> Panel:
    steps: tuple[tuple[float | None, str], ...] = ((None, SERVED),)
    return tile(
        title,
        why,
        (Query(expr, title),),
        unit,
        thresholds=steps if warn is None else (*steps, (warn, WARN)),
        decimals=2 if unit == "currencyUSD" else None,
    )


SPEND: Final = Row(
    "Cost",
    (
        verdict(
            "Healthy: every budget lasts, every call has a price",
            (
                Sentence(
                    yes(f"{q.grown(money.UNPRICED)} > bool 0"),
                    "Some calls have no price: the cost shown is too low",
                    WARN,
                ),
                Sentence(
                    yes(f"abs({q.greatest(money.COST_DRIFT, 'provider')} - 1) > bool 0.05"),
                    "A provider reports other costs than its price list: see Drift",
                    WARN,
                ),
                Sentence(
                    yes(f"{SPENT} > bool ({q.greatest(budget.SOFT_LIMIT, *EACH)} > 0)"),
                    "A budget is above its soft limit: see Budgets",
                    WARN,
                ),
                Sentence(
                    yes(f"{EXHAUSTED_AT} < bool {ENDS_AT}"),
                    "At the current rate, a budget is exhausted before its period ends: see Budgets",
                    BAD,
                ),
                Sentence(
                    yes(f"{q.grown(budget.REFUSALS)} > bool 0"),
                    "An exhausted budget refuses calls: see Budgets",
                    BAD,
                ),
            ),
            "The most severe current condition. Budgets are read from the ledger, so restarts do not reset them.",
        ),
        _tile("Cost in this time range", "Cost of priced calls.", q.grown(money.COST), "currencyUSD"),
        _tile(
            "Cost per hour", "US dollars per hour at the current rate.", f"{HOUR} * {q.rate(money.COST)}", "currencyUSD"
        ),
        _tile("Tokens in this time range", "Prompt and completion tokens.", q.grown(llm.TOKENS), "short"),
        _tile(
            "Cost reported by providers",
            "Share of the cost that providers reported. The rest is from a dated price list.",
            share(q.grown(money.COST, where=REPORTED), q.grown(money.COST)),
            "percentunit",
        ),
        _tile(
            "Tokens not reported",
            "Share of tokens that are estimated or partial, because no usage was reported.",
            share(q.grown(llm.TOKENS, where='source!="reported"'), q.grown(llm.TOKENS)),
            "percentunit",
            0.05,
        ),
        _tile(
            "Calls without a price",
            "Their cost is missing in all figures here. Add a price list, or configure the model.",
            q.grown(money.UNPRICED),
            "short",
            1,
        ),
        Panel(
            "Cost by team",
            "US dollars per hour.",
            (Query(f"{HOUR} * {q.rate(money.COST, 'team')}", "{{team}}"),),
            "currencyUSD",
            stacked=True,
            width=6,
        ),
        Panel(
            "Cost by model",
            "US dollars per hour.",
            (Query(f"{HOUR} * {q.rate(money.COST, 'model')}", "{{model}}"),),
            "currencyUSD",
            stacked=True,
            width=6,
        ),
        Panel(
            "Cost by component",
            "US dollars per hour: what prompts, completions, caches and fees of tools cost.",
            (Query(f"{HOUR} * {q.rate(money.COMPONENT_COST, 'component')}", "{{component}}"),),
            "currencyUSD",
            stacked=True,
            width=6,
        ),
        Panel(
            "Cost by provider",
            "US dollars per hour, by source: reported by the provider, or from a dated price list.",
            (Query(f"{HOUR} * {q.rate(money.COST, 'provider', 'source')}", "{{provider}}, {{source}}"),),
            "currencyUSD",
            stacked=True,
            width=6,
        ),
        Panel(
            "Spending by team and model",
            "Cost and tokens in this time range.",
            (
                Query(f"{q.grown(money.COST, 'team', 'model')} > 0", "Cost"),
                Query(f"{q.grown(llm.TOKENS, 'team', 'model')} > 0", "Tokens"),
                Query(
                    f"1e6 * {q.grown(money.COST, 'team', 'model')} / ({q.grown(llm.TOKENS, 'team', 'model')} > 0)",
                    "Per million tokens",
                ),
            ),
            "short",
            kind="table",
            width=24,
            units={"Cost": "currencyUSD", "Per million tokens": "currencyUSD"},
            decimals=2,
        ),
    ),
)

BUDGETS: Final = Row(
    "Budgets, from the ledger",
    (
        Panel(
            "Budgets",
            "Current period of each budget: spent, reserved for calls in flight, limit, and time until it is exhausted "
            "at the current rate.",
            (
                Query(USED, "Used"),
                Query(SPENT, "Spent"),
                Query(q.greatest(budget.RESERVED, *EACH), "Reserved"),
                Query(q.greatest(budget.SOFT_LIMIT, *EACH), "Soft limit"),
                Query(q.greatest(budget.LIMIT, *EACH), "Limit"),
                Query(f"clamp_min({EXHAUSTED_AT} - time(), 0)", "Exhausted in"),
                Query(f"clamp_min({ENDS_AT} - time(), 0)", "Next period in"),
            ),
            "currencyUSD",
            kind="table",
            width=24,
            height=6,
            units={"Used": "percentunit", "Exhausted in": "s", "Next period in": "s"},
            decimals=2,
        ),
        Panel(
            "Share of each limit",
            "Spent share of the limit in the current period. At 100 %, a hard budget refuses calls.",
            (Query(USED, "{{team}} {{budget}}"),),
            "percentunit",
            width=12,
            greatest=1,
            thresholds=((None, OK), (0.8, WARN), (1, BAD)),
        ),
        Panel(
            "Refused by budgets",
            "Refused calls per second: the rest of the budget did not cover their maximum cost.",
            (Query(q.rate(budget.REFUSALS, *EACH), "{{team}} {{budget}}"),),
            "reqps",
            width=6,
            stacked=True,
        ),
        Panel(
            "Counted by the fallback price",
            "Calls without a price per second. Budgets count them by the fallback price; the cost omits them.",
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
            "Tokens per second. A completion token costs as much as several prompt tokens.",
            (Query(q.rate(llm.TOKENS, "token_type"), "{{token_type}}"),),
            "short",
            stacked=True,
        ),
        Panel(
            "Token details",
            "Parts of the tokens on the left: read from the cache, written to it, used for reasoning, audio.",
            (Query(q.rate(llm.TOKEN_DETAILS, "detail"), "{{detail}}"),),
            "short",
        ),
        Panel(
            "Tokens by source",
            "Reported by the provider, estimated by mcpmeter, or partial after a disconnect of client or upstream.",
            (Query(q.rate(llm.TOKENS, "source"), "{{source}}"),),
            "short",
            colours={"reported": SERVED, "estimated": WARN, "partial": UPSTREAM},
            stacked=True,
        ),
    ),
)

TRUST: Final = Row(
    "Accuracy of the figures",
    (
        Panel(
            "Drift",
            "Reported divided by listed cost since startup. If it is not 1, the price list is outdated.",
            (Query(q.greatest(money.COST_DRIFT, "provider"), "{{provider}}"),),
            "none",
            thresholds=((None, WARN), (0.95, OK), (1.05, WARN)),
            least=0.9,
            greatest=1.1,
            decimals=3,
            width=6,
        ),
        Panel(
            "Calls without a price, by reason",
            "Unpriced calls per second, by provider and reason.",
            (Query(q.moving(money.UNPRICED, "provider", "reason"), "{{provider}}: {{reason}}"),),
            "reqps",
            stacked=True,
            width=6,
        ),
        Panel(
            "Items without a price",
            "Unpriced items of calls per second, by provider and item. Their cost is missing in all figures here.",
            (Query(q.moving(money.UNPRICED_ITEMS, "provider", "item"), "{{provider}}: {{item}}"),),
            "reqps",
            stacked=True,
            width=6,
        ),
        Panel(
            "Calls without usage, by reason",
            "Calls per second without reported usage, by provider and reason.",
            (Query(q.moving(llm.USAGE_MISSING, "provider", "reason"), "{{provider}}: {{reason}}"),),
            "reqps",
            stacked=True,
            width=6,
        ),
    ),
)

ANSWERS: Final = Row(
    "Quality of responses",
    (
        Panel(
            "Time to the first chunk, p95",
            "Time until a stream starts, by model.",
            (Query(q.quantile(0.95, llm.TIME_TO_FIRST_CHUNK, "gen_ai_request_model"), "{{gen_ai_request_model}}"),),
            "s",
        ),
        Panel(
            "Tokens per second, p50",
            "Completion tokens per second by model, including the time to the first token.",
            (Query(q.quantile(0.5, quality.OUTPUT_RATE, "model"), "{{model}}"),),
            "short",
        ),
        Panel(
            "Failed responses with status 200",
            "Responses per second that are empty, cut off at a token limit, or refused.",
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
    description="Spending by team and model, budgets, and the source of each figure.",
    rows=(SPEND, BUDGETS, TOKENS, TRUST, ANSWERS),
    wanted=("team", "model", "provider"),
)
