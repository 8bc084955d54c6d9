"""Background responses: the provider answers first and works afterwards, so the call is followed until its end.

States of such a call. *Held*: the provider's id is known, and the object is being made durable; the last byte of the
response waits for that. *Followed*: the response went out, the row is open with its reservation, and one task asks the
provider, with growing pauses. *Ended*: settled by the provider's own usage, whether a poll, a client's request or
another replica saw it first; or lost, and settled at its reservation. A crash between the provider's response and the
durable object leaves a plain open row, which recovery settles. docs/decisions/027-background-responses.md
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import quote

from mcpmeter.catalog import service
from mcpmeter.dialects.base import Dialect, EventReader, ResponseInfo, UnreadableResponse
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.errors import BackgroundLost, LedgerUnavailable, MeterError, Overloaded, UpstreamFault
from mcpmeter.ledger.store import Store
from mcpmeter.meter import CallResult, Meter, OpenCall, call_of
from mcpmeter.money import usd_to_nanousd
from mcpmeter.records import STANDARD, LedgerRow, ObjectState, ProviderObject, Settlement, Usage
from mcpmeter.relay.background_options import BackgroundOptions
from mcpmeter.relay.call import RelayedCall
from mcpmeter.relay.runtime import EndpointConfig, Runtime, off_loop_if_large
from mcpmeter.relay.usage_parts import joined
from mcpmeter.routing.candidates import Candidate
from mcpmeter.routing.retries import retry_after_ns

log = logging.getLogger("mcpmeter")

PATH_NAME: Final = "responses"
MAX_ID_LENGTH: Final = 256
MAX_POLLS: Final = 16
"""At once, over all followed calls."""
PAUSE_GROWTH: Final = 1.5
MAX_RETRY_AFTER_SECONDS: Final = 300.0
POLLS_UNTIL_LOST: Final = 3
"""So many 404 in a row: a provider may know a response a moment later than it has answered."""


@dataclasses.dataclass(eq=False, slots=True)
class Followed:
    """A pending object, and the row of its call."""

    kept: ProviderObject
    row: LedgerRow
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    """Held while the call is settled."""
    is_ended: bool = False
    not_found: int = 0
    """Polls in a row that the provider answered with 404."""
    task: asyncio.Task[None] | None = None


class BackgroundCalls:
    """The background calls of this process. Other replicas follow their own, and those of dead ones."""

    def __init__(
        self, meter: Meter, store: Store, runtime: Callable[[], Runtime], options: Callable[[], BackgroundOptions]
    ) -> None:
        self._meter = meter
        self._store = store
        self._runtime = runtime
        self._options = options
        self._polls = asyncio.Semaphore(MAX_POLLS)
        self._followed: dict[str, Followed] = {}
        """By call id."""
        self._held: set[str] = set()
        """Calls whose responses are on their way to the client."""
        self.dialect: Dialect = OpenAiResponses()

    def admit(self) -> None:
        """Raises Overloaded if as many background calls are pending as the configuration allows."""
        limit = self._options().max_calls
        if len(self._followed) + len(self._held) >= limit:
            self._meter.recorder.add(service.LIMIT_REACHED, limit="background_calls")
            raise Overloaded(
                f"{limit} background responses are pending.",
                hint="Retry once some have ended; the operator can raise relay.background.max_calls.",
                retry_after="10",
            )

    def attach(self, call: RelayedCall) -> None:
        """Let a call with `background` decide at its end whether it is settled or followed."""
        hold = _Hold(self, call)
        call.opened.deferral = hold
        call.endpoint = _with_events(call.endpoint, _IdReader(call.endpoint.events, hold.note_early))

    async def resume(self) -> int:
        """Follow the pending objects that a previous process or a dead replica left. Returns how many."""
        found = 0
        for kept, row in await self._store.pending_objects():
            if kept.call_id in self._held or kept.call_id in self._followed or self.has_settlement(kept.call_id):
                continue
            if row.state == "settled":
                await self._store.end_object(kept, "settled", time.time_ns())
                continue
            self._follow(kept, row)
            found += 1
        return found

    def has_settlement(self, call_id: str) -> bool:
        """Whether a call's settlement waits for the ledger."""
        return self._meter.pending is not None and call_id in self._meter.pending

    async def close(self) -> None:
        """Stop following. The rows stay open, and the next process follows them on."""
        tasks = [followed.task for followed in self._followed.values() if followed.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._followed.clear()
        self._show_number()

    # Keeping objects --------------------------------------------------------------------------------------------------

    async def keep(self, kept: ProviderObject) -> bool:
        """Make an object durable. False if the ledger does not take it: then its call is settled at once."""
        try:
            await self._store.add_object(kept)
        except MeterError as fault:
            log.warning("a background response cannot be followed: %s", fault.message)
            return False
        return True

    def hold(self, call_id: str) -> None:
        """The response of a call is on its way to the client."""
        self._held.add(call_id)

    def release(self, call_id: str) -> None:
        """The response of a call has ended."""
        self._held.discard(call_id)

    async def follow(self, kept: ProviderObject) -> None:
        """Follow the call of a durable object."""
        with suppress(LedgerUnavailable):  # then the next start follows it
            row = await self._store.row_of_call(kept.call_id)
            if row is not None and row.state == "open":
                self._follow(kept, row)

    def _follow(self, kept: ProviderObject, row: LedgerRow) -> None:
        followed = self._followed[kept.call_id] = Followed(kept, row)
        followed.task = asyncio.get_running_loop().create_task(self._poll_until_ended(followed))
        self._show_number()

    def _show_number(self) -> None:
        self._meter.recorder.set(service.BACKGROUND_CALLS, len(self._followed))

    async def end_object(self, kept: ProviderObject, state: ObjectState) -> None:
        """Note that an object's call is settled. If that fails, the next start sees it."""
        with suppress(LedgerUnavailable):
            await self._store.end_object(kept, state, time.time_ns())

    # Polling ----------------------------------------------------------------------------------------------------------

    async def _poll_until_ended(self, followed: Followed) -> None:
        options = self._options()
        pause = options.first_poll_seconds
        while not followed.is_ended:
            # Jitter, since a restart begins to follow many calls in one moment.
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 (no secret)
            options = self._options()
            retry_after = 0.0
            try:
                async with self._polls:
                    retry_after = await self._poll(followed)
            except MeterError as fault:
                log.debug("a background response is not known yet: %s", fault.message)
            except Exception as fault:  # of one poll; the next one may see it
                log.error("fault while following a background response: %s", type(fault).__name__)
            # Whatever the provider answered, or if it cannot be reached at all.
            if time.time_ns() - followed.kept.created_at_ns > options.give_up_seconds * 1e9:
                with suppress(LedgerUnavailable):  # then after the next poll
                    await self.lose(followed, "This background response did not end in time.")
            pause = max(min(pause * PAUSE_GROWTH, options.max_poll_seconds), retry_after)

    async def look(self, followed: Followed) -> None:
        """Ask the provider now. What it does not answer is tried again later."""
        with suppress(MeterError):
            await self._poll(followed)

    async def _poll(self, followed: Followed) -> float:
        """Ask the provider once. Returns the seconds that it asks to wait."""
        kept = followed.kept
        statuses: list[int] = []
        for target in targets_of(kept, self._runtime()):
            status, retry_after, body = await self._get(kept, target)
            if status == 200:
                followed.not_found = 0
                if await self.settle_from_body(followed, target, body):
                    return 0.0
                break
            statuses.append(status)
            if status not in (401, 403, 404):
                return retry_after
        if statuses and all(status == 404 for status in statuses):
            followed.not_found += 1
            if followed.not_found >= POLLS_UNTIL_LOST:
                await self.lose(followed, "The provider no longer knows this background response.")
        return 0.0

    async def _get(self, kept: ProviderObject, target: Candidate) -> tuple[int, float, bytes]:
        runtime, name = self._runtime(), target.upstream.provider.name
        url, headers = address_of(runtime, target, kept.id)
        response = await runtime.client.post(name, url, headers, b"", target.upstream.timeouts, method="GET")
        try:
            body = await response.read(runtime.options.max_answer_bytes)
            response.finish()
        finally:
            response.abort()
        wait_ns = retry_after_ns(response.headers, time.time_ns()) or 0
        return response.status, min(wait_ns / 1e9, MAX_RETRY_AFTER_SECONDS), body

    # Settling ---------------------------------------------------------------------------------------------------------

    async def found(self, kept: ProviderObject) -> Followed | None:
        """A pending object that this process follows, or whose call is still open; None if its call is settled."""
        followed = self._followed.get(kept.call_id)
        if followed is not None or kept.state != "pending" or kept.call_id in self._held:
            return followed
        row = await self._store.row_of_call(kept.call_id)
        return Followed(kept, row) if row is not None and row.state == "open" else None

    async def settle_from_body(self, followed: Followed, target: Candidate, body: bytes) -> bool:
        """Settle from the provider's response object. False if it has not ended."""
        try:
            info = await off_loop_if_large(len(body), self.dialect.read_response, body)
        except UnreadableResponse:
            return False
        if info.is_pending or not (info.usage or info.is_error or info.finish_reason):
            return False
        completion = 0
        if info.usage is None and not info.is_error:
            completion = await off_loop_if_large(len(body), self.dialect.completion_tokens, body)
        await self.settle(followed, _result_of(followed, target, info, completion))
        return True

    async def settle_from_events(self, followed: Followed, target: Candidate, info: ResponseInfo) -> None:
        """Settle from what a stream has reported, if that is the provider's own usage."""
        if info.usage is not None and not info.is_pending:
            await self.settle(followed, _result_of(followed, target, info, 0))

    async def lose(self, followed: Followed, message: str) -> None:
        """Settle at the reservation: what the provider bills is not known, and it is at most that."""
        kept, prompt_tokens = followed.kept, followed.row.prompt_tokens_estimate
        result = CallResult(
            status="200",
            outcome="error",
            error=BackgroundLost(message),
            usage=Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=kept.max_completion_tokens,
                source="estimated",
                conditions=kept.conditions,
            ),
            missing_reason="background_lost",
        )
        await self.settle(followed, result, "lost", reserved_nanousd=followed.row.reserved_nanousd)

    async def settle(
        self, followed: Followed, result: CallResult, state: ObjectState = "settled", *, reserved_nanousd: int = 0
    ) -> None:
        """Settle the call once, whichever way saw its end first. Raises LedgerUnavailable: it stays followed."""
        async with followed.lock:
            if followed.is_ended:
                return
            call = call_of(followed.row)
            settlement = await self._meter.settle_late(call, result, reserved_nanousd=reserved_nanousd)
            followed.is_ended = True
            self._followed.pop(followed.kept.call_id, None)
            self._show_number()
            await self.end_object(followed.kept, "settled" if settlement is None else state)


class _Hold:
    """The end of a background call's own request: `meter.Deferral`."""

    def __init__(self, background: BackgroundCalls, call: RelayedCall) -> None:
        self._background = background
        self._call = call
        self._kept: ProviderObject | None = None
        self._keeping: asyncio.Task[bool] | None = None

    def note_early(self, object_id: str) -> None:
        """A stream has named its response: make it durable while the stream goes on."""
        self._note(object_id)

    async def settle(self, opened: OpenCall, result: CallResult) -> Settlement:
        """Follow the call if the provider works on, once that is durable; else settle it."""
        background, call_id = self._background, opened.call.id
        self._note(result.object_id)
        kept = self._kept if self._keeping is not None and await asyncio.shield(self._keeping) else None
        opened.deferral = None
        try:
            if kept is not None and result.is_pending:
                settlement = opened.defer(result)
                await background.follow(kept)
                return settlement
            settlement = await opened.settle(result)
            if kept is not None and not background.has_settlement(call_id):
                await background.end_object(kept, "settled")
            return settlement
        finally:
            background.release(call_id)

    def _note(self, object_id: str) -> None:
        target = self._call.target
        if self._keeping is not None or target is None or not is_object_id(object_id):
            return
        call, runtime, request = self._call.opened.call, self._call.runtime, self._call.request
        limit = request.max_completion_tokens
        self._kept = ProviderObject(
            provider=target.upstream.provider.name,
            id=object_id,
            call_id=call.id,
            team=call.team,
            project=call.project,
            key_id=call.key_id,
            credential_id=target.credential.id,
            model=target.model,
            max_completion_tokens=runtime.limits.assumed_completion_tokens if limit is None else limit,
            conditions=request.conditions,
            created_at_ns=time.time_ns(),
        )
        self._background.hold(call.id)
        self._keeping = asyncio.get_running_loop().create_task(self._background.keep(self._kept))


class _IdReader(EventReader):
    """Reads a stream's events as its dialect does, and notes the response's id when it first stands in one."""

    def __init__(self, events: EventReader, note: Callable[[str], None]) -> None:
        self._events = events
        self._note = note
        self.end_marks = events.end_marks
        self.text_mark = events.text_mark

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """As the dialect."""
        info = self._events.read_events(block)
        if info is not None and info.object_id:
            self._note(info.object_id)
        return info

    def merge(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """As the dialect."""
        return self._events.merge(before, now)

    def has_content(self, block: bytes) -> bool:
        """As the dialect."""
        return self._events.has_content(block)

    def is_end(self, event: bytes) -> bool:
        """As the dialect."""
        return self._events.is_end(event)

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """As the dialect."""
        return self._events.delivered_tokens(blocks)


def is_object_id(text: str) -> bool:
    """Whether an id can be kept and requested."""
    return 0 < len(text) <= MAX_ID_LENGTH and text.isascii() and text.isprintable() and " " not in text


def targets_of(kept: ProviderObject, runtime: Runtime) -> list[Candidate]:
    """The object's provider with the credential that made it, then with its others.

    Credentials are known by their position in the configuration, so a change there may have moved it.
    """
    upstream = next((one for one in runtime.routing.upstreams if one.name == kept.provider), None)
    if upstream is None or PATH_NAME not in upstream.provider.paths:
        return []
    credentials = sorted(upstream.credentials, key=lambda credential: credential.id != kept.credential_id)
    return [Candidate(upstream, kept.model, credential) for credential in credentials]


def address_of(
    runtime: Runtime, target: Candidate, object_id: str, *, action: str = "", query: str = "", stream: bool = False
) -> tuple[str, dict[str, str]]:
    """The URL of a response at its provider, and the headers of a request for it."""
    url, headers = runtime.request_headers.of(target, PATH_NAME, stream=stream)
    path, _, own_query = url.partition("?")
    queries = "&".join(filter(None, (own_query, query)))
    return f"{path}/{quote(object_id, safe='')}{action}" + (f"?{queries}" if queries else ""), dict(headers)


def _with_events(endpoint: EndpointConfig, events: EventReader) -> EndpointConfig:
    made = dataclasses.replace(endpoint)
    object.__setattr__(made, "events", events)  # frozen, and the dialect's own reader by default
    return made


def _result_of(followed: Followed, target: Candidate, info: ResponseInfo, completion_tokens: int) -> CallResult:
    provider, usage, reason = target.upstream.provider, info.usage, ""
    if usage is None and not info.is_error:
        prompt_tokens = followed.row.prompt_tokens_estimate
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, source="estimated")
        reason = "bad_usage" if info.bad_usage else "no_usage"
    error = UpstreamFault(f"{provider.name} failed a background response.") if info.is_error else None
    return CallResult(
        status="200",
        outcome="error" if error else "ok",
        error=error,
        usage=None if usage is None else joined(usage, info, followed.kept.conditions, STANDARD),
        missing_reason=reason,
        response_model=info.model,
        finish_reason=info.finish_reason,
        is_refusal=info.is_refusal,
        is_empty=info.is_empty,
        reported_nanousd=usd_to_nanousd(info.reported_usd) if provider.cost_in_body and info.reported_usd else None,
        reported_is_part=info.reported_is_part,
        upstream_status=200,
    )
