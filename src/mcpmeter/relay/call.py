"""A call that has its row in the ledger: send, tee, read usage, settle, last byte. There is one way out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Final, TypeVar

from msgspec.structs import replace

from mcpmeter.dialects.base import Dialect, RequestInfo, ResponseInfo, UnreadableResponse
from mcpmeter.errors import (
    ClientDisconnected,
    Draining,
    InvalidRequest,
    InvalidUpstreamResponse,
    MeterError,
    Overloaded,
    ServiceFault,
    UpstreamDisconnected,
    UpstreamFault,
    UpstreamRateLimited,
    UpstreamRefusedAccount,
    UpstreamResponseTooLarge,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from mcpmeter.http.client.interface import Answer
from mcpmeter.http.exchange import CancelOnDisconnect, DirectResponse, Exchange, Header
from mcpmeter.meter import CallResult, OpenCall
from mcpmeter.pricing import usd_to_nanousd
from mcpmeter.providers import Provider
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import LlmTarget, Settlement, Usage
from mcpmeter.relay.headers import answer_error, cost_headers, handed_on, own_header, request_id, went_to
from mcpmeter.relay.piping import Pipe
from mcpmeter.relay.runtime import EndpointConfig, Runtime
from mcpmeter.relay.stream import StreamTee
from mcpmeter.routing.failover import Attempts, Candidate, Send, Wait

_Result = TypeVar("_Result")

IN_A_THREAD_BYTES: Final = 256 * 1024
"""Larger bodies are read in a thread, so that one of them does not hold up everybody's streams."""


class RelayedCall:
    """A call that has its row in the ledger and is on its way."""

    def __init__(
        self,
        *,
        opened: OpenCall,
        exchange: Exchange,
        service: EndpointConfig,
        runtime: Runtime,
        attempts: Attempts,
        quota: QuotaTracker,
        asked: RequestInfo,
        body: bytes,
    ) -> None:
        self._opened = opened
        self._exchange = exchange
        self._dialect = service.dialect
        self._service = service
        self.runtime = runtime
        self._attempts = attempts
        self._quota = quota
        self._provider = attempts.first
        self._secret = ""
        self._asked = asked
        self._withhold_usage = False
        self._body = body
        self._answer: Answer | None = None
        self._refusal = b""
        """The body of this attempt's 400, which had to be read before it was clear whether another attempt is made."""
        self._tee: StreamTee | None = None
        self._first_chunk_ns = 0
        self._listening: CancelOnDisconnect | None = None

    def cut(self, error: MeterError) -> None:
        """End the call now, for a reason of the service's own."""
        if self._listening is not None:
            self._listening.cut(error)

    async def run(self) -> Settlement:
        """Send, hand the answer on, settle, send the last byte."""
        try:
            with self._exchange.listening() as self._listening:
                answer = self._answer = await self._send()
                if answer.status < 300 and _is_stream(answer):
                    self._tee = await self._pass_stream(answer)
                else:
                    body = self._refusal or await answer.read(self.runtime.options.max_answer_bytes)
            if self._tee is not None:
                return await self._end_stream(answer, self._tee)
            if answer.status >= 300:
                return await self._hand_on_error(answer, body)
            return await self._hand_on_answer(answer, body)
        except MeterError as error:
            return await self._fail(error)
        except BaseException:
            await self._settle_after_fault()
            raise
        finally:
            self._attempts.close()
            if self._answer is not None:
                self._answer.abort()

    async def _send(self) -> Answer:
        """Send until an answer is to be handed on. Nothing has gone to the client yet, so another may be tried."""
        attempts = self._attempts
        while True:
            step = attempts.next()
            if isinstance(step, Send):
                candidate = step.candidate
                self._take(candidate)
                try:
                    answer = await self._post(candidate)
                    is_refused = answer.status == 400 and await self._refuses_key(candidate, answer)
                except BaseException as fault:
                    if not attempts.failed(fault):
                        raise
                    continue
                self._note_quota(candidate, answer)
                if not attempts.answered(answer.status, answer.headers, is_refused=is_refused):
                    return answer
                answer.finish()
            elif isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            else:
                raise step.error

    async def _refuses_key(self, candidate: Candidate, answer: Answer) -> bool:
        """Whether a 400 is about the relay's key, as Google's is: then another key may do."""
        marks = candidate.upstream.provider.refused_account_marks
        if not marks:
            return False
        try:
            self._refusal = await answer.read(self.runtime.options.max_answer_bytes)
        except BaseException:
            answer.abort()
            raise
        return _has_any(self._refusal, marks)

    def _note_quota(self, candidate: Candidate, answer: Answer) -> None:
        provider, now_ns = candidate.upstream.provider, time.time_ns()
        credential = candidate.credential.id
        # Providers count models apart, so each is a pool of its own.
        self._quota.note(provider.name, credential, answer.headers, provider.quota, now=now_ns, pool=candidate.model)

    def _take(self, candidate: Candidate) -> None:
        provider = candidate.upstream.provider
        said = self._opened.call.llm
        # The first attempt too may go elsewhere than the row says: by weight, or past an open circuit.
        if said is None or said.provider != provider.name or said.model != candidate.model:
            self._opened.goes_to(target_of(provider, candidate.model, self._dialect, self._asked))
        self._provider, self._secret, self._refusal = provider, candidate.credential.secret, b""

    async def _post(self, candidate: Candidate) -> Answer:
        provider, dialect = candidate.upstream.provider, self._dialect
        path_name = dialect.path_name(self._asked)
        headers = self.runtime.heads.of(provider, candidate.credential, path_name, stream=self._asked.stream)
        if passed := self._passed_headers():
            headers = {**passed, **headers}  # ours, the key above all, are never the caller's
        asked = self._asked if provider.asks_stream_usage else replace(self._asked, usage_requested=True)
        self._withhold_usage = asked.stream and not asked.usage_requested
        body = dialect.forwarded(self._body, asked, candidate.model)
        times = candidate.upstream.timeouts
        # The first attempt is sent at once, with all of the call's time.
        if self._attempts.made > 1 and self._attempts.seconds_left < times.total_seconds:
            times = replace(times, total_seconds=self._attempts.seconds_left)
        url = provider.url(path_name, candidate.model)
        return await self.runtime.client.post(provider.name, url, headers, body, times)

    def _passed_headers(self) -> dict[str, str]:
        wanted, given = self._dialect.passed_headers, self._exchange.headers
        if wanted.isdisjoint(given):
            return {}
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in given.items() if name in wanted}

    async def _pass_stream(self, answer: Answer) -> StreamTee:
        """Hand a stream on, all but its end."""
        # Kept from the first byte on, so that what was delivered is known however the stream ends.
        tee = self._tee = StreamTee(self._service.events, withhold_usage=self._withhold_usage)
        wire = self._exchange.wire
        if wire is not None and answer.is_plain and self._listening is not None:
            pipe = Pipe(wire, answer, tee, self._listening)
            await pipe.run(self.runtime.options.max_answer_bytes, partial(self._begin_stream, answer, wire))
        else:
            await self._hand_on_parts(answer, tee)
        if tee.end:
            return tee
        part = tee.finish()
        if not tee.is_whole:
            raise self._ended_early()
        if part:
            await self._exchange.send(part)
        return tee

    def _begin_stream(self, answer: Answer, wire: DirectResponse) -> None:
        self._first_chunk_ns = self._opened.elapsed_ns()
        self._exchange.started = True
        wire.start(answer.status, self._headers(answer))

    async def _hand_on_parts(self, answer: Answer, tee: StreamTee) -> None:
        async with aclosing(answer.chunks(self.runtime.options.max_answer_bytes)) as chunks:
            async for data in chunks:
                if not self._exchange.started:
                    # Not before: a stream that breaks before its first byte can still be answered with a status.
                    self._first_chunk_ns = self._opened.elapsed_ns()
                    await self._exchange.start(answer.status, self._headers(answer))
                if part := tee.feed(data):
                    await self._exchange.send(part)
                if tee.end:
                    return

    def _ended_early(self) -> UpstreamFault:
        name = self._provider.name
        if not self._exchange.started:
            return InvalidUpstreamResponse(f"{name} answered with an empty stream.", hint="Retry.")
        return UpstreamDisconnected(f"{name} ended its stream before the answer was complete.", hint="Retry.")

    async def _end_stream(self, answer: Answer, tee: StreamTee) -> Settlement:
        answer.finish()
        settlement = await self._settle(self._ending(str(answer.status), await self._usage_of_stream(tee), tee.read))
        await self._exchange.end(tee.end)
        return settlement

    async def _hand_on_answer(self, answer: Answer, body: bytes) -> Settlement:
        try:
            reading = self._dialect.read_response
            read = reading(body) if len(body) <= IN_A_THREAD_BYTES else await asyncio.to_thread(reading, body)
        except UnreadableResponse:
            kind = "an empty body" if not body.strip() else "a body that is not a JSON answer"
            raise InvalidUpstreamResponse(
                f"{self._provider.name} answered {answer.status} with {kind}.", hint="Check its base_url, or retry."
            ) from None
        answer.finish()
        usage = _usage_told(read) if read.usage is not None else await self._usage_missing(body, read)
        settlement = await self._opened.settle(self._ending(str(answer.status), usage, read))
        headers = (*self._headers(answer), *cost_headers(settlement))
        await self._exchange.whole(answer.status, headers, body)
        return settlement

    async def _hand_on_error(self, answer: Answer, body: bytes) -> Settlement:
        """What a provider refused goes on as it came, unless it is about our account or the endpoint maps faults."""
        error = self._error_of(answer, body)
        if isinstance(error, UpstreamRefusedAccount) or self._must_map(answer.status):
            raise error
        answer.finish()
        settlement = await self._settle(
            CallResult(
                status=str(answer.status),
                outcome="error",
                error=error,
                upstream_status=answer.status,
                upstream_request_id=request_id(answer),
            )
        )
        await self._exchange.whole(answer.status, self._headers(answer), body)
        return settlement

    def _must_map(self, status: int) -> bool:
        maps = self._service.maps_upstream_faults
        return status < 400 or status > 599 or (maps and status >= 500)

    def _refuses_account(self, status: int, body: bytes) -> bool:
        """By its status, by what the provider is known to say, or by repeating our key, which nobody may see."""
        if status in (401, 402, 403):
            return True
        marks = self._provider.refused_account_marks
        return _has_any(body, marks) or bool(self._secret and self._secret.encode() in body)

    def _error_of(self, answer: Answer, body: bytes) -> MeterError:
        name, status = self._provider.name, answer.status
        if status < 400:
            return InvalidUpstreamResponse(
                f"{name} answered {status}, a redirect, which is never followed.", hint="Correct its base_url."
            )
        if self._refuses_account(status, body):
            return UpstreamRefusedAccount(
                f"{name} refused the relay's own account (HTTP {status}).",
                hint="The operator has to check its key and credit; the caller's key was not sent.",
            )
        if status == 429:
            return UpstreamRateLimited(f"{name} is rate limiting.", retry_after=answer.headers.get("retry-after"))
        if status in (408, 504):
            return UpstreamTimedOut(f"{name} answered {status}.", hint="Retry.")
        if status < 500:
            return InvalidRequest(f"{name} refused the request (HTTP {status}).")
        return UpstreamFault(f"{name} answered {status}.", hint="Retry.")

    async def _fail(self, error: MeterError) -> Settlement:
        """The call ended badly: settle what was delivered, then say so in the way that is still open."""
        if isinstance(error, UpstreamFault) and not isinstance(error, UpstreamResponseTooLarge):
            # Too large is by our own limit, which says nothing against the provider.
            self._attempts.broke()
        if not self._opened.is_settled:
            try:
                await self._settle(await self._broken_ending(error))
            except MeterError as fault:
                error = fault
        exchange, call_id, settlement = self._exchange, self._opened.call.id, self._opened.settled
        if isinstance(error, ClientDisconnected):
            return settlement
        if exchange.started:
            await exchange.end(self._dialect.error_event(error, call_id))
        else:
            body = self._dialect.error_body(error, call_id)
            await answer_error(exchange, error, body, call_id, self._went_to())
        return settlement

    def _went_to(self) -> Iterable[Header]:
        """Which provider was asked last, and how many attempts were made; nothing where none was."""
        made = self._attempts.made
        return went_to(self._provider.name, made) if made else ()

    async def _broken_ending(self, error: MeterError) -> CallResult:
        answer, tee = self._answer, self._tee
        status = error.http_status
        if self._exchange.started and answer is not None and not isinstance(error, ClientDisconnected):
            status = answer.status
        # A provider that refused has not worked for it, and counting tokens is free however it ends.
        is_free = self._dialect.operation == "count_tokens" or (answer is not None and answer.status >= 300)
        reason = "" if is_free else _why_missing(error)
        usage: Usage | None = None
        if tee is not None and tee.read.usage is not None:
            usage, reason = tee.read.usage, ""
        elif reason:
            usage = await self._usage_delivered(tee)
        partial = isinstance(error, ClientDisconnected | Draining) or self._exchange.started
        return self._ending(
            str(status),
            (usage, reason if usage is not None else ""),
            tee.read if tee is not None else ResponseInfo(),
            outcome_is_partial=partial,
            error=error,
        )

    async def _settle_after_fault(self) -> None:
        """A fault of our own or the loop's end: the call still gets its one settlement."""
        if self._opened.is_settled:
            return
        error = ServiceFault(
            "The service failed while relaying.", hint="It is our fault; the service's log says where."
        )
        ending = await self._broken_ending(error)
        await asyncio.shield(self._opened.settle(ending))
        if not self._exchange.started:
            await answer_error(
                self._exchange,
                error,
                self._dialect.error_body(error, self._opened.call.id),
                self._opened.call.id,
                self._went_to(),
            )

    async def _settle(self, ending: CallResult) -> Settlement:
        return await self._opened.settle(ending)

    def _ending(
        self,
        status: str,
        usage: tuple[Usage | None, str],
        read: ResponseInfo,
        *,
        outcome_is_partial: bool = False,
        error: MeterError | None = None,
    ) -> CallResult:
        answer, tee = self._answer, self._tee
        if error is None and read.is_error:
            error = UpstreamFault(f"{self._provider.name} answered an error with a success status.")
        return CallResult(
            status=status,
            outcome="partial" if outcome_is_partial else "error" if error else "ok",
            error=error,
            usage=usage[0],
            missing_reason=usage[1],
            response_model=read.model,
            finish_reason=read.finish_reason,
            is_refusal=read.is_refusal,
            is_empty=read.is_empty,
            reported_nanousd=self._reported_cost(answer.headers, read.reported_usd) if answer else None,
            upstream_status=answer.status if answer else 0,
            upstream_request_id=request_id(answer) if answer else "",
            time_to_first_chunk_ns=self._first_chunk_ns,
            chunks=tee.chunks if tee else 0,
        )

    def _reported_cost(self, headers: Mapping[str, str], reported_usd: str) -> int | None:
        told = headers.get(self._provider.cost_header) if self._provider.cost_header else None
        if not told and self._provider.cost_in_body:
            told = reported_usd
        return usd_to_nanousd(told) if told else None

    async def _usage_missing(self, body: bytes, read: ResponseInfo) -> tuple[Usage | None, str]:
        if read.is_error:
            return None, ""
        prompt = await off_loop_if_large(self._dialect.prompt_tokens, self._body)
        completion = await off_loop_if_large(self._dialect.completion_tokens, body)
        return _estimated(prompt, completion), "bad_usage" if read.bad_usage else "no_usage"

    async def _usage_of_stream(self, tee: StreamTee) -> tuple[Usage | None, str]:
        if tee.read.usage is not None:
            return tee.read.usage, ""
        if tee.read.is_error:
            delivered = await self._usage_delivered(tee)
            return (delivered, "upstream_broke") if delivered.completion_tokens else (None, "")
        prompt = await off_loop_if_large(self._dialect.prompt_tokens, self._body)
        return _estimated(prompt, tee.delivered_tokens()), "bad_usage" if tee.read.bad_usage else "no_usage"

    async def _usage_delivered(self, tee: StreamTee | None) -> Usage:
        counted = tee.counted if tee is not None else None
        # The provider's own count of the prompt, where it told one at the beginning, is exact.
        prompt = counted.prompt_tokens if counted else await off_loop_if_large(self._dialect.prompt_tokens, self._body)
        completion = tee.delivered_tokens() if tee is not None else 0
        return Usage(prompt_tokens=prompt, completion_tokens=completion, source="partial")

    def _headers(self, answer: Answer) -> list[Header]:
        """All but the length of what is handed on, and what it cost."""
        where = went_to(self._provider.name, self._attempts.made)
        return [own_header(self._opened.call.id), *where, *handed_on(answer.headers, self._secret)]


def _is_stream(answer: Answer) -> bool:
    content_type = answer.headers.get("content-type", "")
    if content_type == "application/json":
        return False
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def _usage_told(read: ResponseInfo) -> tuple[Usage | None, str]:
    return read.usage, "upstream_broke" if read.usage is not None and read.usage.source == "partial" else ""


def target_of(provider: Provider, model: str, dialect: Dialect, asked: RequestInfo) -> LlmTarget:
    """The model call that goes to a provider."""
    return LlmTarget(
        provider=provider.name,
        model=model,
        operation=dialect.operation,
        stream=asked.stream,
        prompt_tokens_estimate=asked.prompt_tokens_estimate,
        otel_provider=provider.otel_name,
    )


def _has_any(body: bytes, marks: Iterable[str]) -> bool:
    return any(mark.encode() in body for mark in marks)


def _why_missing(error: MeterError) -> str:
    """Why a broken call has no usage; empty where the provider cannot have worked for it."""
    if isinstance(error, ClientDisconnected):
        return "client_gone"
    if isinstance(error, Overloaded | UpstreamUnreachable | UpstreamRefusedAccount | UpstreamRateLimited):
        return ""
    return "service_stopped" if isinstance(error, ServiceFault) else "upstream_broke"


def _estimated(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, source="estimated")


async def off_loop_if_large(read: Callable[[bytes], _Result], data: bytes) -> _Result:
    """Read a body here if it is small, else in a thread."""
    return await asyncio.to_thread(read, data) if len(data) > IN_A_THREAD_BYTES else read(data)
