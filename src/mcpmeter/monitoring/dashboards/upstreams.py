"""Upstreams and quota: health of the providers, retries, and remaining quotas."""

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
    "rate limited": ('outcome="rate_limited"', "#8a57c2"),
    "key refused": ('outcome=~"refused|forbidden"', OURS),
    "failed": (FAILED, UPSTREAM),
    "abandoned": ('outcome="abandoned"', "#36c5b8"),
}

HEALTH: Final = Row(
    "Health",
    (
        verdict(
            "Healthy: every upstream responds and has quota left",
            (
                Sentence(
                    yes(f"{share(q.rate(upstream.RETRIES), q.rate(upstream.ATTEMPTS))} > bool 0.1"),
                    "More than 10 % of attempts are retries, so callers wait longer: see Retries by reason",
                    WARN,
                ),
                Sentence(yes(f"{LEFT} < bool 0.05"), "A quota has less than 5 % left: see Quotas", WARN),
                Sentence(
                    yes(f"{SOON} < bool 300"),
                    "At the current rate, a quota is exhausted within 5 minutes: see Exhausted in",
                    BAD,
                ),
                Sentence(
                    yes(f"{share(q.rate(upstream.ATTEMPTS, where=FAILED), q.rate(upstream.ATTEMPTS))} > bool 0.05"),
                    "An upstream fails above 5 %, calls go to the next one of the route: see Failing, by provider",
                    BAD,
                ),
                Sentence(
                    yes(f"{q.least(upstream.UP)} < bool 1"),
                    "An upstream is down or refuses its keys: see Up",
                    BAD,
                ),
            ),
            "The most severe current condition. Refused keys are ours to renew; all else is on the providers' side.",
        ),
        Panel(
            "Up",
            "No while the provider's circuit is open, or while it refuses all of its keys (then renew them).",
            (Query(q.least(upstream.UP, "provider"), "{{provider}}"),),
            "bool_yes_no",
            kind="stat",
            width=12,
            height=4,
            thresholds=((None, BAD), (1, OK)),
        ),
        Panel(
            "Circuit open",
            "Yes from the failure that opens the circuit until a call succeeds. Meanwhile only trial calls are sent.",
            (Query(q.greatest(upstream.CIRCUIT_OPEN, "provider"), "{{provider}}"),),
            "bool_yes_no",
            kind="stat",
            width=12,
            height=4,
            thresholds=((None, OK), (1, BAD)),
        ),
        Panel(
            "Attempts by outcome",
            "Requests sent to providers per second, first attempts and retries, by outcome.",
            tuple(Query(q.rate(upstream.ATTEMPTS, where=where), name) for name, (where, _) in OUTCOMES.items()),
            "reqps",
            width=12,
            colours={name: colour for name, (_, colour) in OUTCOMES.items()},
            stacked=True,
        ),
        Panel(
            "Failing, by provider",
            "Share of attempts that failed on the provider's side, without rate limits and refused keys.",
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
            "Response time, p95",
            "Time from sending a call to the last byte of its response.",
            (Query(q.quantile(0.95, llm.OPERATION_DURATION, "gen_ai_provider_name"), "{{gen_ai_provider_name}}"),),
            "s",
            width=12,
            logarithmic=True,
        ),
        Panel(
            "Retries by reason",
            "Retries per second, by the failure that caused them. The default limit is 20 % of requests.",
            (Query(q.moving(upstream.RETRIES, "reason"), "{{reason}}"),),
            "reqps",
            width=12,
            stacked=True,
        ),
    ),
)

QUOTA: Final = Row(
    "Quota, from the providers' headers",
    (
        Panel(
            "Remaining share",
            "Remaining share of each quota, as reported by the provider. Credentials are named by their position in "
            "the configuration.",
            (Query(LEFT, "{{provider}} {{credential}} {{resource}}"),),
            "percentunit",
            width=12,
            greatest=1,
            thresholds=((None, BAD), (0.05, WARN), (0.2, OK)),
        ),
        Panel(
            "Exhausted in",
            "Time until a quota is exhausted at the rate of the last minutes. No line if it resets first.",
            (Query(SOON, "{{provider}} {{credential}} {{resource}}"),),
            "s",
            width=12,
            thresholds=((None, BAD), (300, WARN), (3600, OK)),
        ),
        Panel(
            "Quotas",
            "Limit, remaining quota and time to the reset of each credential.",
            (
                Query(q.greatest(quota.LIMIT, *PLACE), "Limit"),
                Query(q.least(quota.REMAINING, *PLACE), "Remaining"),
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
    description="Health of the providers, retries and response times, and remaining quotas.",
    rows=(HEALTH, QUOTA),
    wanted=("provider",),
)
