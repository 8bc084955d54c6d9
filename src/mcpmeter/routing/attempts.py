"""The attempts of one call: where the next one goes, when, and whether another one follows.

`next` returns a step. After `Send` an attempt is in flight until `answered` or `failed` reports its result; both return
whether to call `next` again. A good response keeps the attempt in flight until its last byte, since it may still
break: `broke` reports that, and `close` ends the call on every path. Once `answered` or `failed` has returned False
there is no further attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from types import TracebackType
from typing import Final, Self

import msgspec

from mcpmeter.catalog.spec import NANO
from mcpmeter.errors import UpstreamFault, UpstreamRateLimited, UpstreamRefusedAccount
from mcpmeter.routing.candidates import Candidate, CredentialSlot, RouteTarget, Selector, drawn_by_weight
from mcpmeter.routing.circuit_breaker import Permit
from mcpmeter.routing.health import HEALTHY, CredentialBackoff, FailoverState, Pause
from mcpmeter.routing.outcomes import Outcome, is_failure, is_retried, outcome_of_fault, outcome_of_status
from mcpmeter.routing.retries import full_jitter, nanoseconds, retry_after_ns
from mcpmeter.routing.routes import Plan

DOUBT_AFTER_REFUSAL_NS: Final = 60 * NANO
"""How long other credentials are preferred to one that received 401, 402 or 403."""

NO_PERMIT: Final = Permit(0, is_probe=False)
_TURN: Final = attrgetter("state.turn")


class Send(msgspec.Struct, frozen=True):
    """Send the call there now."""

    candidate: Candidate


class Wait(msgspec.Struct, frozen=True):
    """Sleep, then call `next` again: another call may have changed the state meanwhile."""

    seconds: float


class Refuse(msgspec.Struct, frozen=True):
    """No upstream can take the call: raise this."""

    error: UpstreamFault


class _Result(msgspec.Struct, frozen=True):
    """The result of the last attempt."""

    slot: CredentialSlot
    outcome: Outcome
    status: int = 0
    fault: UpstreamFault | None = None


class Attempts:
    """The attempts of one call. Use it in `with`, or call `close` on every path."""

    # fmt: off
    __slots__ = (
        "_begun_ns", "_has_headers", "_is_over", "_is_trial", "_last", "_lazy_selector", "_not_before_ns", "_permit",
        "_slot", "_state", "_targets", "_total_seconds", "_turns", "first", "made",
    )
    # fmt: on

    def __init__(self, plan: Plan, targets: Sequence[RouteTarget], total_seconds: float, state: FailoverState) -> None:
        self.made = 0
        """Attempts sent."""
        self.first = plan.first.upstream.provider
        """The provider of the plan's first choice."""
        self._state = state
        self._targets = drawn_by_weight(targets, state.random) if plan.mode == "weighted" else targets
        self._turns = tuple(map(_TURN, self._targets))
        self._lazy_selector: Selector | None = None
        """Made by `_selector`: most calls need none."""
        self._begun_ns = state.clock_ns()
        self._total_seconds = total_seconds
        self._not_before_ns = 0
        self._slot: CredentialSlot | None = None
        """Slot of the attempt in flight, with `_permit`."""
        self._permit = NO_PERMIT
        self._has_headers = False
        self._is_over = False
        self._is_trial = False
        """Whether the attempt in flight tries a Retry-After that has not ended."""
        self._last: _Result | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds until the time of the whole call is over."""
        return max(0.0, (self._deadline_ns - self._state.clock_ns()) / NANO)

    @property
    def _deadline_ns(self) -> int:
        return self._begun_ns + nanoseconds(self._total_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The next step ----------------------------------------------------------------------------------------------------

    def next(self) -> Send | Wait | Refuse:
        """Decide the next step. RuntimeError: an attempt is in flight, or the last one is over."""
        if self._slot is not None or self._is_over:
            raise RuntimeError("an attempt is in flight, or the last one is over")
        if not self.made:
            first = self._targets[0].slots[self._turns[0]]
            if self._is_clear(first):
                return self._send(first, first.state.breaker.permit)
        now_ns = self._state.clock_ns()
        if now_ns < self._not_before_ns:
            return Wait((self._not_before_ns - now_ns) / NANO)
        slot = self._selector().ready(now_ns, is_retry=self._last is not None)
        if slot is None:
            return self._wait_or_refuse(now_ns)
        self._count_sent(slot)
        max_wait_ns = nanoseconds(self._state.retries.max_wait_seconds)
        self._is_trial = slot.backoff.begin_trial(slot.candidate.model, now_ns, max_wait_ns)
        return self._send(slot, slot.state.breaker.send(now_ns))

    def _is_clear(self, slot: CredentialSlot) -> bool:
        """Whether nothing is known against the first slot: `Selector.ready` would return it, so it need not run."""
        backoff = slot.backoff
        if backoff.waits and not backoff.is_free(slot.candidate.model, self._begun_ns):
            return False
        return slot.state.breaker.is_clean and not backoff.doubtful_until_ns

    def _send(self, slot: CredentialSlot, permit: Permit) -> Send:
        state = self._state
        if self._last is not None:
            state.observer.retried(self._last.slot.state.name, self._last.outcome)
        elif not state.budget.is_full:
            state.budget.request()
        self.made += 1
        self._slot, self._permit = slot, permit
        slot.state.turn = slot.next_turn
        return Send(slot.candidate)

    def _selector(self) -> Selector:
        if self._lazy_selector is None:
            self._lazy_selector = Selector(self._targets, self._turns)
        return self._lazy_selector

    def _count_sent(self, slot: CredentialSlot) -> None:
        self._selector().sent(slot)
        if not self._state.retries.same_place:
            self._selector().exclude(slot)

    def _wait_or_refuse(self, now_ns: int) -> Wait | Refuse:
        """A first attempt never waits: a caller that is refused at once with Retry-After can do something else."""
        soonest = self._selector().soonest(now_ns)
        if self._last is not None and soonest is not None and self._may_wait_until(soonest.until_ns, now_ns):
            self._not_before_ns = soonest.until_ns
            return Wait((self._not_before_ns - now_ns) / NANO)
        return Refuse(self._refusal(now_ns))

    def _may_wait_until(self, instant_ns: int, now_ns: int) -> bool:
        return instant_ns - now_ns <= nanoseconds(self._state.retries.cap_seconds) and instant_ns < self._deadline_ns

    def _refusal(self, now_ns: int) -> UpstreamFault:
        last = self._last
        if last is not None and last.fault is not None:
            return last.fault
        first = self._selector().shortest_wait()
        wait_seconds = -(-max(0, first.until_ns - now_ns) // NANO)
        retry_after = str(wait_seconds) if wait_seconds else None
        name = first.state.name if last is None else last.slot.state.name
        if last is not None and last.outcome == "refused":
            return UpstreamRefusedAccount(f"{name} refused the relay's own account.", hint="Check its key and credit.")
        if first.backoff.is_rate_limited(first.candidate.model) if last is None else last.outcome == "rate_limited":
            return UpstreamRateLimited(f"{name} is rate limiting.", hint="Retry later.", retry_after=retry_after)
        return UpstreamFault(f"{name} is not available.", hint="Retry later.", retry_after=retry_after)

    # The result of an attempt -----------------------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str]) -> bool:
        """Report response headers. True: drop the response and call `next`; False: hand it on.

        `headers` have lower-case names. `status` is what the response amounts to: 402 if a body of another status says
        that the account is exhausted. Call it before the first byte to the client; there is no retry afterwards.
        """
        slot = self._in_flight()
        outcome: Outcome = "ok" if status == 200 else outcome_of_status(status)
        if outcome == "ok":
            self._succeed(slot)
            return False
        result = self._end_attempt(_Result(slot, outcome, status))
        self._back_off(result, retry_after_ns(headers, self._state.unix_ns()))
        self._report(result)
        self._is_over = headers.get("x-should-retry") == "false" or not self._may_retry(result)
        return not self._is_over

    def failed(self, fault: BaseException) -> bool:
        """Report an attempt without response headers. True: call `next`; False: raise the fault."""
        slot = self._in_flight()
        known = fault if isinstance(fault, UpstreamFault) else None
        result = self._end_attempt(_Result(slot, outcome_of_fault(fault), fault=known))
        self._report(result)
        self._is_over = not self._may_retry(result)
        return not self._is_over

    def broke(self) -> None:
        """Report that the upstream broke off a response that was being handed on."""
        slot = self._slot
        if slot is not None and self._has_headers:
            self._slot = None
            slot.state.breaker.failed(self._permit, self._state.clock_ns())
            self._state.report_status(slot.state)

    def close(self) -> None:
        """End the call. An attempt cut off before its headers counts as abandoned."""
        slot, self._slot = self._slot, None
        if slot is None:
            return
        breaker = slot.state.breaker
        if not self._has_headers:
            breaker.abandoned(self._permit)
            self._state.observer.attempted(slot.state.name, "abandoned")
        elif not breaker.is_clean:
            breaker.succeeded(self._permit)

    def _in_flight(self) -> CredentialSlot:
        if self._slot is None or self._is_over:
            raise RuntimeError("no attempt is in flight")
        return self._slot

    def _succeed(self, slot: CredentialSlot) -> None:
        """Keep the attempt in flight until the response's end. A healthy upstream and credential need no update."""
        self._has_headers = self._is_over = True
        state, backoff = slot.state, slot.backoff
        if not state.breaker.is_clean:
            self._permit = state.breaker.headers_received(self._permit)
        if backoff.doubtful_until_ns or backoff.is_refused:
            backoff.trust()
        if self._is_trial:
            backoff.end_trial(slot.candidate.model)
        self._state.observer.attempted(state.name, "ok")
        if state.reported != HEALTHY or not state.breaker.is_clean:
            self._state.report_status(state)

    def _end_attempt(self, result: _Result) -> _Result:
        """End an attempt without a good response, and update the selector and the circuit."""
        slot = result.slot
        self._slot, self._last = None, result
        if self._lazy_selector is None:  # the first attempt went past the selector, which has to count it
            self._count_sent(slot)
        if is_failure(result.outcome, result.status):
            slot.state.breaker.failed(self._permit, self._state.clock_ns())
            self._selector().failed(slot)
        else:
            slot.state.breaker.abandoned(self._permit)
        return result

    def _back_off(self, result: _Result, after_ns: int | None) -> None:
        slot, now_ns = result.slot, self._state.clock_ns()
        match result.outcome:
            case "rate_limited":
                slot.backoff.doubt(now_ns + nanoseconds(self._state.retries.cap_seconds))
                self._wait([slot.backoff], result, now_ns, after_ns)
            case "server_error":
                # The Retry-After of a 5xx is about the provider, not the account: it holds for every credential.
                self._wait(slot.state.backoffs, result, now_ns, after_ns)
            case "refused":
                slot.backoff.is_refused = True
                slot.backoff.doubt(now_ns + DOUBT_AFTER_REFUSAL_NS)
                self._selector().exclude(slot)
            case "forbidden":
                slot.backoff.doubt(now_ns + DOUBT_AFTER_REFUSAL_NS)

    def _wait(self, backoffs: Iterable[CredentialBackoff], result: _Result, now_ns: int, after_ns: int | None) -> None:
        if not after_ns:
            return
        if self._is_trial:  # what the provider says now replaces what it said before
            result.slot.backoff.end_trial(result.slot.candidate.model)
        honoured_ns = min(after_ns, nanoseconds(self._state.retries.max_wait_seconds))
        pause = Pause(now_ns + honoured_ns, now_ns + after_ns, result.outcome == "rate_limited")
        for backoff in backoffs:
            backoff.wait_until(result.slot.candidate.model, pause, now_ns)

    def _report(self, result: _Result) -> None:
        self._state.observer.attempted(result.slot.state.name, result.outcome)
        self._state.report_status(result.slot.state)

    # Whether another attempt follows ----------------------------------------------------------------------------------

    def _may_retry(self, result: _Result) -> bool:
        retries, now_ns = self._state.retries, self._state.clock_ns()
        if self.made >= retries.max_attempts:
            return False
        if not is_retried(result.outcome, result.status, after_timeout=retries.after_timeout):
            return False
        at_ns = self._next_at_ns(now_ns)
        if at_ns is None or at_ns >= self._deadline_ns or not self._state.budget.take():
            return False
        self._not_before_ns = at_ns
        return True

    def _next_at_ns(self, now_ns: int) -> int | None:
        """When a retry may be sent: at once elsewhere, after a pause at a slot or upstream that failed."""
        slot = self._selector().ready(now_ns, is_retry=True)
        if slot is not None:
            return now_ns + (self._pause_ns() if self._selector().was_tried(slot) else 0)
        slot = self._selector().soonest(now_ns)
        if slot is None or not self._may_wait_until(slot.until_ns, now_ns):
            return None
        return slot.until_ns + self._pause_ns()

    def _pause_ns(self) -> int:
        options = self._state.retries
        return nanoseconds(full_jitter(self._state.random, options.base_seconds, options.cap_seconds, self.made - 1))
