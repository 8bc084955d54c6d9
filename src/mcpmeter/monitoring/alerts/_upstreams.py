"""What the two alerts on a provider that is down share."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import upstream
from mcpmeter.monitoring.alert import Check
from mcpmeter.monitoring.queries import Parameter, Queries

RATIO: Final = Parameter("ratio", "0.5", "Share of attempts that fail before a provider counts as down.", most="1")
ATTEMPTS: Final = Parameter("attempts", "10", "Attempts in five minutes below which the share says nothing.")
PARAMETERS: Final = (RATIO, ATTEMPTS)

FAILED: Final = 'outcome=~"server_error|unreachable|timeout|broken|garbage|refused"'
SENT: Final = 'outcome!~"caller_error|abandoned"'
"""What callers did wrong or gave up says nothing about the provider."""


def down(q: Queries, provider: str) -> str:
    """All replicas hold it for down, or most attempts over all replicas fail.

    The first half is needed because an open circuit sends nothing, so that there is no share to look at.
    """
    failed = q.increase(upstream.ATTEMPTS, "5m", "provider", where=(provider, FAILED))
    sent = q.increase(upstream.ATTEMPTS, "5m", "provider", where=(provider, SENT))
    held = f"{q.highest(upstream.UP, 'provider', where=(provider,))} == 0"
    return f"{held} or ({failed} / {sent} > {q[RATIO]} and {sent} >= {q[ATTEMPTS]})"


def checks(q: Queries) -> tuple[Check, ...]:
    """The queries of both runbooks."""
    return (
        Check("What came of the attempts", q.increase(upstream.ATTEMPTS, "5m", "provider", "outcome")),
        Check("Whose circuit is open, by replica", f"{q.of(upstream.CIRCUIT_OPEN)} == 1"),
        Check("Do other providers take over", q.rate(upstream.RETRIES, "5m", "provider", "reason")),
    )
