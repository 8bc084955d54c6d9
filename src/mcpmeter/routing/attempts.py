"""The attempts of one call: where the next one goes, when, and whether there is one."""

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
from mcpmeter.routing.health import WELL, CredentialBackoff, FailoverState
from mcpmeter.routing.options import nanoseconds
from mcpmeter.routing.outcomes import Outcome, is_failure, is_retried, outcome_of_fault, outcome_of_status
from mcpmeter.routing.retries import full_jitter, retry_after_ns
from mcpmeter.routing.routes import Plan

DOUBT_AFTER_REFUSAL_NS: Final = 60 * NANO
"""How long a credential that got 401, 402 or 403 goes behind the others."""

NO_PERMIT: Final = Permit(0, is_probe=False)
_TURN: Final = attrgetter("state.turn")


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

    slot: CredentialSlot
    outcome: Outcome
    status: int = 0
    fault: UpstreamFault | None = None


class Attempts:
    """Asked in turn: `next`, then `answered` or `failed`, until one of these says that there is no further attempt.

    `broke` where a good answer ended badly; `close` at the end of the call, on every path (or use it in `with`).
    """

    # fmt: off
    __slots__ = (
        "_begun_ns", "_choice", "_has_head", "_is_over", "_last", "_not_before_ns", "_permit", "_place", "_shared",
        "_total_seconds", "_turns", "_ways", "first", "made",
    )
    # fmt: on

    def __init__(self, plan: Plan, ways: Sequence[RouteTarget], total_seconds: float, shared: FailoverState) -> None:
        self.made = 0
        """Attempts sent."""
        self.first = plan.first.upstream.provider
        """The provider of the plan's first choice."""
        self._shared = shared
        self._ways = drawn_by_weight(ways, shared.random) if plan.mode == "weighted" else ways
        self._turns = tuple(map(_TURN, self._ways))
        self._choice: Selector | None = None
        """Made by `_candidates`: the usual call needs none."""
        self._begun_ns = shared.clock_ns()
        self._total_seconds = total_seconds
        self._not_before_ns = 0
        self._place: CredentialSlot | None = None
        """Where an attempt is out, with `_permit`."""
        self._permit = NO_PERMIT
        self._has_head = False
        self._is_over = False
        self._last: _Result | None = None

    @property
    def seconds_left(self) -> float:
        """Until the time of the whole call is over."""
        return max(0.0, (self._deadline_ns - self._shared.clock_ns()) / NANO)

    @property
    def _deadline_ns(self) -> int:
        return self._begun_ns + nanoseconds(self._total_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What to do ------------------------------------------------------------------------------------------------------

    def next(self) -> Send | Wait | Refuse:
        """What to do now. RuntimeError: what came of the last `Send` was not told, or it was the last one."""
        if self._place is not None or self._is_over:
            raise RuntimeError("an attempt is out, or was the last")
        if not self.made:
            first = self._ways[0].slots[self._turns[0]]
            if self._is_clear(first):
                return self._send(first, first.state.breaker.permit)
        now_ns = self._shared.clock_ns()
        if now_ns < self._not_before_ns:
            return Wait((self._not_before_ns - now_ns) / NANO)
        candidates = self._candidates()
        slot = candidates.ready(now_ns, is_retry=self._last is not None)
        if slot is None:
            return self._wait_or_refuse(now_ns)
        self._note_sent(candidates, slot)
        return self._send(slot, slot.state.breaker.send(now_ns))

    def _is_clear(self, slot: CredentialSlot) -> bool:
        """Whether nothing is known against the first place: then it is the best one, and no other is looked at."""
        backoff = slot.backoff
        if backoff.waits and slot.until_ns > self._begun_ns:
            return False
        return slot.state.breaker.is_clean and not backoff.doubtful_until_ns

    def _send(self, slot: CredentialSlot, permit: Permit) -> Send:
        shared = self._shared
        if self._last is not None:
            shared.tally.retried(self._last.slot.state.name, self._last.outcome)
        elif not shared.budget.is_full:
            shared.budget.request()
        self.made += 1
        self._place, self._permit = slot, permit
        slot.state.turn = slot.next_turn
        return Send(slot.candidate)

    def _candidates(self) -> Selector:
        if self._choice is None:
            self._choice = Selector(self._ways, self._turns)
        return self._choice

    def _note_sent(self, candidates: Selector, slot: CredentialSlot) -> None:
        candidates.sent(slot)
        if not self._shared.retries.same_place:
            candidates.refused(slot)

    def _wait_or_refuse(self, now_ns: int) -> Wait | Refuse:
        """A first attempt does not wait: who is refused at once with the time to come back can do something else."""
        soonest = self._candidates().soonest(now_ns)
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
        first = self._candidates().first_to_end_its_wait()
        wait_seconds = -(-max(0, first.until_ns - now_ns) // NANO)
        retry_after = str(wait_seconds) if wait_seconds else None
        name = first.state.name if last is None else last.slot.state.name
        if last is not None and last.outcome == "refused":
            return UpstreamRefusedAccount(f"{name} refused the relay's own account.", hint="Check its key and credit.")
        if first.backoff.is_rate_limited(first.candidate.model) if last is None else last.outcome == "rate_limited":
            return UpstreamRateLimited(f"{name} is rate limiting.", hint="Retry later.", retry_after=retry_after)
        return UpstreamFault(f"{name} is not available.", hint="Retry later.", retry_after=retry_after)

    # What came of it -------------------------------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str], *, is_refused: bool = False) -> bool:
        """The head of an answer has come. True: drop the answer and ask `next`; False: hand it on.

        `headers` by lower-case name; `is_refused`: its body says that the credential is no good, whatever the status
        says. Call it before anything goes to the client; afterwards nothing is tried again.
        """
        slot = self._place
        if slot is None or self._is_over:
            raise RuntimeError("no attempt is out")
        outcome: Outcome = "ok" if status == 200 else "refused" if is_refused else outcome_of_status(status)
        if outcome == "ok":
            self._answered_well(slot)
            return False
        self._come_back(slot)
        result = self._last = _Result(slot, outcome, status)
        self._learn(result)
        self._cool(result, retry_after_ns(headers, self._shared.unix_ns()))
        self._tell(result)
        self._is_over = headers.get("x-should-retry") == "false" or not self._may_try_again(result)
        return not self._is_over

    def _answered_well(self, slot: CredentialSlot) -> None:
        """The attempt stays out until the answer's end. What is known already is neither learned nor told again."""
        self._has_head = self._is_over = True
        state, backoff = slot.state, slot.backoff
        if not state.breaker.is_clean:
            self._permit = state.breaker.answers(self._permit)
        if backoff.doubtful_until_ns or backoff.is_refused:
            backoff.trust()
        self._shared.tally.attempted(state.name, "ok")
        if state.told != WELL or not state.breaker.is_clean:
            self._shared.tell_standing(state)

    def failed(self, fault: BaseException) -> bool:
        """No head came. True: ask `next`; False: raise the fault."""
        slot = self._place
        if slot is None or self._is_over:
            raise RuntimeError("no attempt is out")
        self._come_back(slot)
        known = fault if isinstance(fault, UpstreamFault) else None
        result = self._last = _Result(slot, outcome_of_fault(fault), fault=known)
        self._learn(result)
        self._tell(result)
        self._is_over = not self._may_try_again(result)
        return not self._is_over

    def _come_back(self, slot: CredentialSlot) -> None:
        """The attempt brought nothing, so that there may be a choice to make, which has to know of it."""
        self._place = None
        if self._choice is None:
            self._note_sent(self._candidates(), slot)

    def broke(self) -> None:
        """The answer that was handed on ended badly at the provider's side."""
        slot = self._place
        if slot is not None and self._has_head:
            self._place = None
            slot.state.breaker.failed(self._permit, self._shared.clock_ns())
            self._shared.tell_standing(slot.state)

    def close(self) -> None:
        """The call is over. An attempt that was cut off before its head gives a probe's place back."""
        slot, self._place = self._place, None
        if slot is None:
            return
        breaker = slot.state.breaker
        if not self._has_head:
            breaker.abandoned(self._permit)
            self._shared.tally.attempted(slot.state.name, "abandoned")
        elif not breaker.is_clean:
            breaker.succeeded(self._permit)

    def _learn(self, result: _Result) -> None:
        slot = result.slot
        if is_failure(result.outcome, result.status):
            slot.state.breaker.failed(self._permit, self._shared.clock_ns())
            self._candidates().failed(slot)
        else:
            slot.state.breaker.abandoned(self._permit)

    def _cool(self, result: _Result, asked_ns: int | None) -> None:
        slot, now_ns = result.slot, self._shared.clock_ns()
        match result.outcome:
            case "rate_limited":
                slot.backoff.doubt(now_ns + nanoseconds(self._shared.retries.cap_seconds))
                self._wait([slot.backoff], result, now_ns, asked_ns)
            case "server_error":
                # It is the provider that asks, not the account: that holds for every credential.
                self._wait(slot.state.backoffs, result, now_ns, asked_ns)
            case "refused":
                slot.backoff.is_refused = True
                slot.backoff.doubt(now_ns + DOUBT_AFTER_REFUSAL_NS)
                self._candidates().refused(slot)
            case "forbidden":
                slot.backoff.doubt(now_ns + DOUBT_AFTER_REFUSAL_NS)

    @staticmethod
    def _wait(backoffs: Iterable[CredentialBackoff], result: _Result, now_ns: int, asked_ns: int | None) -> None:
        limited = result.outcome == "rate_limited"
        for backoff in backoffs:
            if asked_ns:
                backoff.wait_until(now_ns + asked_ns, now_ns, result.slot.candidate.model, is_rate_limited=limited)

    def _tell(self, result: _Result) -> None:
        self._shared.tally.attempted(result.slot.state.name, result.outcome)
        self._shared.tell_standing(result.slot.state)

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
        slot = self._candidates().ready(now_ns, is_retry=True)
        if slot is not None:
            return now_ns + (self._pause_ns() if self._candidates().was_tried(slot) else 0)
        slot = self._candidates().soonest(now_ns)
        if slot is None or not self._may_wait_until(slot.until_ns, now_ns):
            return None
        return slot.until_ns + self._pause_ns()

    def _pause_ns(self) -> int:
        options, shared = self._shared.retries, self._shared
        return nanoseconds(full_jitter(shared.random, options.base_seconds, options.cap_seconds, self.made - 1))
