"""The attempts of one call: where the next one goes, when, and whether there is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Final, Self

import msgspec

from mcpmeter.catalog.spec import NANO
from mcpmeter.errors import UpstreamFault, UpstreamRateLimited, UpstreamRefusedAccount
from mcpmeter.relay.failover.breaker import Permit
from mcpmeter.relay.failover.candidates import Candidate, Candidates, Entry
from mcpmeter.relay.failover.options import nanoseconds
from mcpmeter.relay.failover.outcomes import Outcome, is_failure, is_retried, outcome_of_fault, outcome_of_status
from mcpmeter.relay.failover.state import Cooling, Shared
from mcpmeter.relay.failover.waits import full_jitter, retry_after_ns
from mcpmeter.relay.providers import Provider
from mcpmeter.relay.routing import Plan

DOUBT_AFTER_REFUSAL_NS: Final = 60 * NANO
"""How long a credential that got 401, 402 or 403 goes behind the others."""


class Send(msgspec.Struct, frozen=True):
    """Send the call there now."""

    candidate: Candidate


class Wait(msgspec.Struct, frozen=True):
    """Sleep, then ask again: by then another call may have learned something."""

    seconds: float


class Refuse(msgspec.Struct, frozen=True):
    """There is nowhere to send it: raise this."""

    error: UpstreamFault


class _Result(msgspec.Struct, frozen=True):
    """What came of the last attempt."""

    entry: Entry
    outcome: Outcome
    status: int = 0
    fault: UpstreamFault | None = None


class Attempts:
    """Asked in turn: `next`, then `answered` or `failed`, until one of these says that there is no further attempt.

    `broke` where a good answer ended badly; `close` at the end of the call, on every path (or use it in `with`).
    """

    def __init__(self, plan: Plan, total_seconds: float, shared: Shared) -> None:
        self.made = 0
        """Attempts sent."""
        self._shared = shared
        self._first = plan.first.upstream.provider
        self._candidates = Candidates(plan, shared)
        self._deadline_ns = shared.clock_ns() + nanoseconds(total_seconds)
        self._not_before_ns = 0
        self._out: tuple[Entry, Permit] | None = None
        self._has_head = False
        self._is_over = False
        self._last: _Result | None = None

    @property
    def first(self) -> Provider:
        """The provider of the plan's first choice."""
        return self._first

    @property
    def seconds_left(self) -> float:
        """Until the time of the whole call is over."""
        return max(0.0, (self._deadline_ns - self._shared.clock_ns()) / NANO)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What to do ------------------------------------------------------------------------------------------------------

    def next(self) -> Send | Wait | Refuse:
        """What to do now. RuntimeError: what came of the last `Send` was not told, or it was the last one."""
        if self._out is not None or self._is_over:
            raise RuntimeError("an attempt is out, or was the last")
        now_ns = self._shared.clock_ns()
        if now_ns < self._not_before_ns:
            return Wait((self._not_before_ns - now_ns) / NANO)
        entry = self._candidates.ready(now_ns, is_retry=self._last is not None)
        if entry is not None:
            return self._send(entry, now_ns)
        return self._wait_or_refuse(now_ns)

    def _send(self, entry: Entry, now_ns: int) -> Send:
        if self._last is None:
            self._shared.budget.request()
        else:
            self._shared.tally.retried(self._last.entry.state.name, self._last.outcome)
        self.made += 1
        self._out = entry, entry.state.breaker.send(now_ns)
        self._candidates.sent(entry)
        if not self._shared.retries.same_place:
            self._candidates.refused(entry)
        return Send(entry.candidate)

    def _wait_or_refuse(self, now_ns: int) -> Wait | Refuse:
        """A first attempt does not wait: who is refused at once with the time to come back can do something else."""
        soonest = self._candidates.soonest(now_ns)
        if self._last is not None and soonest is not None and self._may_wait_until(soonest.until_ns, now_ns):
            self._not_before_ns = soonest.until_ns
            return Wait((self._not_before_ns - now_ns) / NANO)
        return Refuse(self._refusal(now_ns))

    def _may_wait_until(self, instant_ns: int, now_ns: int) -> bool:
        return instant_ns - now_ns <= nanoseconds(self._shared.retries.cap_seconds) and instant_ns < self._deadline_ns

    def _refusal(self, now_ns: int) -> UpstreamFault:
        last = self._last
        if last is not None and last.fault is not None:
            return last.fault
        first = self._candidates.first_to_end_its_wait()
        wait_seconds = -(-max(0, first.until_ns - now_ns) // NANO)
        retry_after = str(wait_seconds) if wait_seconds else None
        name = first.state.name if last is None else last.entry.state.name
        if last is not None and last.outcome == "refused":
            return UpstreamRefusedAccount(f"{name} refused the relay's own account.", hint="Check its key and credit.")
        if first.cooling.is_rate_limited(first.candidate.model) if last is None else last.outcome == "rate_limited":
            return UpstreamRateLimited(f"{name} is rate limiting.", hint="Retry later.", retry_after=retry_after)
        return UpstreamFault(f"{name} is not available.", hint="Retry later.", retry_after=retry_after)

    # What came of it -------------------------------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str]) -> bool:
        """The head of an answer has come. True: drop the answer and ask `next`; False: hand it on.

        `headers` by lower-case name. Call it before anything goes to the client; afterwards nothing is tried again.
        """
        entry, permit = self._taken_out()
        result = self._last = _Result(entry, outcome_of_status(status), status)
        if result.outcome == "ok":
            self._out = entry, entry.state.breaker.answers(permit)
            self._has_head = True
            entry.cooling.trust()
        else:
            self._learn(result, permit)
            self._cool(result, retry_after_ns(headers, self._shared.unix_ns()))
        self._tell(result)
        self._is_over = headers.get("x-should-retry") == "false" or not self._may_try_again(result)
        return not self._is_over

    def failed(self, fault: BaseException) -> bool:
        """No head came. True: ask `next`; False: raise the fault."""
        entry, permit = self._taken_out()
        known = fault if isinstance(fault, UpstreamFault) else None
        result = self._last = _Result(entry, outcome_of_fault(fault), fault=known)
        self._learn(result, permit)
        self._tell(result)
        self._is_over = not self._may_try_again(result)
        return not self._is_over

    def broke(self) -> None:
        """The answer that was handed on ended badly at the provider's side."""
        if self._out is not None and self._has_head:
            (entry, permit), self._out = self._out, None
            entry.state.breaker.failed(permit, self._shared.clock_ns())
            self._shared.tell_standing(entry.state)

    def close(self) -> None:
        """The call is over. An attempt that was cut off before its head gives a probe's place back."""
        if self._out is None:
            return
        (entry, permit), self._out = self._out, None
        if self._has_head:
            entry.state.breaker.succeeded(permit)
        else:
            entry.state.breaker.abandoned(permit)
            self._shared.tally.attempted(entry.state.name, "abandoned")

    def _taken_out(self) -> tuple[Entry, Permit]:
        if self._out is None or self._is_over:
            raise RuntimeError("no attempt is out")
        out, self._out = self._out, None
        return out

    def _learn(self, result: _Result, permit: Permit) -> None:
        entry = result.entry
        if is_failure(result.outcome, result.status):
            entry.state.breaker.failed(permit, self._shared.clock_ns())
            self._candidates.failed(entry)
        else:
            entry.state.breaker.abandoned(permit)

    def _cool(self, result: _Result, asked_ns: int | None) -> None:
        entry, now_ns = result.entry, self._shared.clock_ns()
        match result.outcome:
            case "rate_limited":
                entry.cooling.doubt(now_ns + nanoseconds(self._shared.retries.cap_seconds))
                self._wait([entry.cooling], result, now_ns, asked_ns)
            case "server_error":
                # It is the provider that asks, not the account: that holds for every credential.
                self._wait(entry.state.coolings, result, now_ns, asked_ns)
            case "refused":
                entry.cooling.is_refused = True
                entry.cooling.doubt(now_ns + DOUBT_AFTER_REFUSAL_NS)
                self._candidates.refused(entry)
            case "forbidden":
                entry.cooling.doubt(now_ns + DOUBT_AFTER_REFUSAL_NS)

    @staticmethod
    def _wait(coolings: Iterable[Cooling], result: _Result, now_ns: int, asked_ns: int | None) -> None:
        limited = result.outcome == "rate_limited"
        for cooling in coolings:
            if asked_ns:
                cooling.wait_until(now_ns + asked_ns, now_ns, result.entry.candidate.model, is_rate_limited=limited)

    def _tell(self, result: _Result) -> None:
        self._shared.tally.attempted(result.entry.state.name, result.outcome)
        self._shared.tell_standing(result.entry.state)

    # Whether there is a further one -----------------------------------------------------------------------------------

    def _may_try_again(self, result: _Result) -> bool:
        retries, now_ns = self._shared.retries, self._shared.clock_ns()
        if self.made >= retries.max_attempts:
            return False
        if not is_retried(result.outcome, result.status, after_timeout=retries.after_timeout):
            return False
        at_ns = self._next_at_ns(now_ns)
        if at_ns is None or at_ns >= self._deadline_ns or not self._shared.budget.take():
            return False
        self._not_before_ns = at_ns
        return True

    def _next_at_ns(self, now_ns: int) -> int | None:
        """When a further attempt may be sent: at once elsewhere, after a pause where the call failed before."""
        entry = self._candidates.ready(now_ns, is_retry=True)
        if entry is not None:
            return now_ns + (self._pause_ns() if self._candidates.was_tried(entry) else 0)
        entry = self._candidates.soonest(now_ns)
        if entry is None or not self._may_wait_until(entry.until_ns, now_ns):
            return None
        return entry.until_ns + self._pause_ns()

    def _pause_ns(self) -> int:
        options, shared = self._shared.retries, self._shared
        return nanoseconds(full_jitter(shared.random, options.base_seconds, options.cap_seconds, self.made - 1))
