"""Upstreams and quota: which provider answers, what its failures cost us, and what it still allows."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import llm, quota, upstream
from mcpmeter.monitoring.dashboards.promql import PageQueries, share, yes
from mcpmeter.monitoring.dashboards.spec import (
    BAD,
    CALLER,
    OK,
    OURS,
    SERVED,
    UPSTREAM,
    WARN,
    Page,
    Panel,
    Query,
    Row,
    Sentence,
    verdict,
)

q: Final = PageQueries("provider")
PLACE: Final = ("provider", "credential", "resource")
FAILED: Final = 'outcome=~"server_error|unreachable|timeout|broken|garbage"'
LEFT: Final = f"{q.least(quota.REMAINING, *PLACE)} / ({q.greatest(quota.LIMIT, *PLACE)} > 0)"
SOON: Final = f"{q.least(quota.EXHAUSTION, *PLACE)}"
OUTCOMES: Final = {
    "ok": ('outcome="ok"', SERVED),
    "the caller's": ('outcome="caller_error"', CALLER),
    "limited": ('outcome="rate_limited"', "#8a57c2"),
    "key refused": ('outcome=~"refused|forbidden"', OURS),
    "failed": (FAILED, UPSTREAM),
    "given up by us": ('outcome="abandoned"', "#36c5b8"),
}

HEALTH: Final = Row(
    "Who answers",
    (
        verdict(
            "All is well: every upstream answers and has quota left",
            (
                Sentence(
                    yes(f"{share(q.rate(upstream.RETRIES), q.rate(upstream.ATTEMPTS))} > bool 0.1"),
                    "Calls need second attempts: callers wait longer, see Why it was tried again",
                    WARN,
                ),
                Sentence(yes(f"{LEFT} < bool 0.05"), "A quota has less than 5 % left: see the table", WARN),
                Sentence(yes(f"{SOON} < bool 300"), "A quota runs out within 5 minutes at this rate", BAD),
                Sentence(
                    yes(f"{share(q.rate(upstream.ATTEMPTS, where=FAILED), q.rate(upstream.ATTEMPTS))} > bool 0.05"),
                    "An upstream fails above 5 %: their side; calls go to the next one if a route names one",
                    BAD,
                ),
                Sentence(
                    yes(f"{q.least(upstream.UP)} < bool 1"),
                    "An upstream is down or refuses our keys: see Up",
                    BAD,
                ),
            ),
            "Read this first. All of it is the providers' side, but for refused keys: those are ours to mend.",
        ),
        Panel(
            "Up",
            "0 while the provider's circuit is open, or while it refuses all of its keys (then renew the key).",
            (Query(q.least(upstream.UP, "provider"), "{{provider}}"),),
            "bool_yes_no",
            kind="stat",
            width=12,
            height=4,
            thresholds=((None, BAD), (1, OK)),
        ),
        Panel(
            "Circuit open",
            "1 from the failure that opened it until a call succeeds. While open, nothing is sent but trials.",
            (Query(q.greatest(upstream.CIRCUIT_OPEN, "provider"), "{{provider}}"),),
            "bool_yes_no",
            kind="stat",
            width=12,
            height=4,
            thresholds=((None, OK), (1, BAD)),
        ),
        Panel(
            "Attempts by outcome",
            "Requests sent to providers a second, first attempts and further ones, by what came of them.",
            tuple(Query(q.rate(upstream.ATTEMPTS, where=where), name) for name, (where, _) in OUTCOMES.items()),
            "reqps",
            width=12,
            colours={name: colour for name, (_, colour) in OUTCOMES.items()},
            stacked=True,
        ),
        Panel(
            "Failing, by provider",
            "Share of attempts that failed on the provider's side. Limits and refused keys are not among them.",
            (
                Query(
                    share(q.rate(upstream.ATTEMPTS, "provider", where=FAILED), q.rate(upstream.ATTEMPTS, "provider")),
                    "{{provider}}",
                ),
            ),
            "percentunit",
            width=12,
            thresholds=((None, OK), (0.05, BAD)),
        ),
        Panel(
            "Answer time, p95",
            "From sending a call to the last byte of its answer, the provider's part of every latency.",
            (Query(q.quantile(0.95, llm.OPERATION_DURATION, "gen_ai_provider_name"), "{{gen_ai_provider_name}}"),),
            "s",
            width=12,
            logarithmic=True,
        ),
        Panel(
            "Why it was tried again",
            "Further attempts a second, by the failure that caused them. At most 20 % of requests unless configured.",
            (Query(q.moving(upstream.RETRIES, "reason"), "{{reason}}"),),
            "reqps",
            width=12,
            stacked=True,
        ),
    ),
)

QUOTA: Final = Row(
    "Quota, from the providers' own headers",
    (
        Panel(
            "Left",
            "Share of each quota that the provider said is left. A credential is named by its place in configuration.",
            (Query(LEFT, "{{provider}} {{credential}} {{resource}}"),),
            "percentunit",
            width=12,
            greatest=1,
            thresholds=((None, BAD), (0.05, WARN), (0.2, OK)),
        ),
        Panel(
            "Runs out in",
            "Time until nothing is left at the rate of the last minutes. No line: it is filled before it is empty.",
            (Query(SOON, "{{provider}} {{credential}} {{resource}}"),),
            "s",
            width=12,
            thresholds=((None, BAD), (300, WARN), (3600, OK)),
        ),
        Panel(
            "Quotas",
            "What each credential may use, has left, and when it is whole again.",
            (
                Query(q.greatest(quota.LIMIT, *PLACE), "Limit"),
                Query(q.least(quota.REMAINING, *PLACE), "Left"),
                Query(f"clamp_min({q.greatest(quota.RESET, *PLACE)} - time(), 0)", "Resets in"),
            ),
            "short",
            kind="table",
            width=24,
            height=6,
            units={"Resets in": "s"},
        ),
    ),
)

PAGE: Final = Page(
    uid="mcpmeter-upstreams",
    title="mcpmeter: Upstreams and quota",
    description="Which provider answers, what its failures cost in attempts and time, and what it still allows.",
    rows=(HEALTH, QUOTA),
    wanted=("provider",),
)
