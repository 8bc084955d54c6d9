"""What came of one attempt, and what follows from that. Every decision on retries stands in this file's table."""

from __future__ import annotations

from typing import Final, Literal

from mcpmeter.errors import UpstreamDisconnected, UpstreamFault, UpstreamTimedOut, UpstreamUnreachable

Outcome = Literal[
    "ok",
    "caller_error",
    "rate_limited",
    "refused",
    "forbidden",
    "server_error",
    "unreachable",
    "timeout",
    "broken",
    "garbage",
    "abandoned",
]
"""How far an attempt came, up to the answer's head; the closed set of a metric's label."""

# outcome       what it is                           tried again                   counts against the circuit
#
# ok            2xx                                  no                            no: closes it, ends the row
# rate_limited  429                                  yes                           no: it works, for others
# refused       401, 402, or a body that says that   with another credential only  no
#               the credential is no good
# forbidden     403: perhaps the prompt's fault      no: what one provider's       no
#                                                    moderation refuses is not
#                                                    hawked to the next
# caller_error  any other 4xx                        no                            no
# server_error  5xx                                  500, 502, 503, 504, 529       all but 501 and 505
# unreachable   no connection; nothing was sent      yes                           yes
# broken        closed before the head: mostly the   yes                           yes
#               race with an idle connection's end
# timeout       no head in time: the provider may    if configured                 yes
#               be working, and bill for both
# garbage       not HTTP, or a redirect: the         no                            yes
#               address is wrong
# abandoned     the caller left, or a fault of ours  no                            no

RETRIED: Final[frozenset[Outcome]] = frozenset(("rate_limited", "refused", "unreachable", "broken"))
RETRIED_5XX: Final = frozenset((500, 502, 503, 504, 529))
FAILURES: Final[frozenset[Outcome]] = frozenset(("server_error", "unreachable", "broken", "timeout", "garbage"))
HARMLESS_5XX: Final = frozenset((501, 505))
"""They depend on the request, so that a caller could open everybody's circuit with them."""


def outcome_of_status(status: int) -> Outcome:
    """Of an answer's status code."""
    if 200 <= status < 300:
        return "ok"
    if status == 429:
        return "rate_limited"
    if status in (401, 402):
        return "refused"
    if status == 403:
        return "forbidden"
    if 400 <= status < 500:
        return "caller_error"
    return "server_error" if 500 <= status < 600 else "garbage"


def outcome_of_fault(fault: BaseException) -> Outcome:
    """Of an attempt that brought no answer."""
    match fault:
        case UpstreamUnreachable():
            return "unreachable"
        case UpstreamTimedOut():
            return "timeout"
        case UpstreamDisconnected():
            return "broken"
        case UpstreamFault():
            return "garbage"
    return "abandoned"


def is_retried(outcome: Outcome, status: int, *, after_timeout: bool) -> bool:
    """Whether another attempt may bring something better. `status` is 0 where there was no answer."""
    return outcome in RETRIED or status in RETRIED_5XX or (after_timeout and outcome == "timeout")


def is_failure(outcome: Outcome, status: int) -> bool:
    """Whether the attempt counts against the upstream's circuit."""
    return outcome in FAILURES and status not in HARMLESS_5XX
