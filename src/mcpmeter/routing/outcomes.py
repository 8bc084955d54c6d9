"""The outcome of one attempt and its consequences. Every decision on retries follows from the table in this file."""

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
"""Result of an attempt up to the response headers; the closed set of a metric's label."""

# outcome       cause                                retried                       counts against the circuit
#
# ok            2xx                                  no                            no: closes it, clears failures
# rate_limited  429                                  yes                           no: it works for other callers
# refused       401, 402, or a body that says the    with another credential only  no
#               credential is not valid or its
#               account exhausted
# forbidden     403 without a known reason: possibly no: a prompt that one         no
#               the prompt's fault                   provider's moderation refuses
#                                                    is not offered to the next
# caller_error  any other 4xx; 403 for the prompt,   no                            no
#               or for a tool or model that is not
#               enabled
# server_error  5xx, or an HTML page with 403        500, 502, 503, 504, 529       all but 501 and 505
# unreachable   no connection; nothing was sent      yes                           yes
# broken        closed before the headers: mostly a  yes                           yes
#               race with an idle connection's end
# timeout       no headers in time: the provider     if configured                 yes
#               may still work, and bill for both
# garbage       not HTTP, or a redirect: the         no                            yes
#               address is wrong
# abandoned     the caller left, or a fault of ours  no                            no

RETRIED: Final[frozenset[Outcome]] = frozenset(("rate_limited", "refused", "unreachable", "broken"))
RETRIED_5XX: Final = frozenset((500, 502, 503, 504, 529))
FAILURES: Final[frozenset[Outcome]] = frozenset(("server_error", "unreachable", "broken", "timeout", "garbage"))
HARMLESS_5XX: Final = frozenset((501, 505))
"""They depend on the request: if they counted, one caller could open the circuit for all callers."""


def outcome_of_status(status: int) -> Outcome:
    """The outcome of a response by its status code."""
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
    """The outcome of an attempt without a response."""
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
    """Whether another attempt may succeed. `status` is 0 without a response."""
    return outcome in RETRIED or status in RETRIED_5XX or (after_timeout and outcome == "timeout")


def is_failure(outcome: Outcome, status: int) -> bool:
    """Whether the attempt counts against the upstream's circuit."""
    return outcome in FAILURES and status not in HARMLESS_5XX
