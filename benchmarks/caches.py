"""What each cache on a call's path saves, in interleaved pairs on one core: `python -m benchmarks.caches`.

A pair runs the same step with the cache and without it, the way it runs on a miss, and takes the process's CPU time.
The saving is the median over the pairs, with its 95 % interval. A cache stays if it saves about a hundredth of a call,
which takes about 120 µs of CPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from benchmarks.pairs import median_interval
from mcpmeter.access.keys import KeyRing
from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.period import Period
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.http.client import Http1Client
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.http.client.target import Target
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.pricing import PriceBook, PriceSource, bundled_price_lists
from mcpmeter.providers import load_providers
from mcpmeter.records import Call, Charge, LlmTarget, Scope, Settlement, Usage
from mcpmeter.relay.headers import RequestHeaders
from mcpmeter.relay.runtime import RelayOptions, Runtime
from mcpmeter.relay.stream import StreamTee
from mcpmeter.routing.candidates import Candidate, route_targets
from mcpmeter.routing.failover import Failover, FailoverMetrics
from mcpmeter.routing.routes import Routing, Upstream
from mcpmeter.service.app import HostGuard

PAIRS: Final = 30
ROUNDS: Final = 2_000
NOW_NS: Final = 1_793_534_400_000_000_000
MODEL: Final = "gpt-4.1"
CHUNK: Final = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4.1","choices":[{"index":0,'
    b'"delta":{"content":"%s"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)

Step = Callable[[], object]


class Cache(NamedTuple):
    """One cache: the step that uses it, and the same step on a miss."""

    name: str
    hit: Step
    miss: Step


def caches() -> list[Cache]:
    """Every cache on the path of a call or a chunk."""
    upstream = Upstream(provider=load_providers()["openai"], api_key="sk-1")
    candidate = Candidate(upstream, MODEL, upstream.credentials[0])
    runtime = Runtime(
        options=RelayOptions(), routing=Routing([upstream]), client=Http1Client(Timeouts()), keys=KeyRing([])
    )
    plan = runtime.plan(MODEL, "chat")
    failover = Failover(FailoverMetrics(Recorder()))
    failover.begin(plan, 60.0)
    headers = RequestHeaders()
    url, sent_headers = headers.of(candidate, "chat", stream=False)
    target = Target.of(url)
    target.request_headers(sent_headers, 570)
    book = PriceBook(bundled_price_lists(), sources={"openai": PriceSource(genai_id="openai")})
    budgets = Budgets([Budget("all", Scope(), 10**12, Period("month"))])
    guard = HostGuard(["localhost", "127.0.0.1"])
    request: dict[str, Any] = {"path": "/v1/chat/completions", "headers": [(b"host", b"127.0.0.1:8000")]}
    return [
        Cache(
            "request headers per credential (relay/headers.py)",
            lambda: headers.of(candidate, "chat", stream=False),
            lambda: headers._make(candidate, "chat", stream=False),
        ),
        Cache(
            "plan per model (relay/runtime.py)",
            lambda: runtime.plan(MODEL, "chat"),
            lambda: runtime._new_plan(MODEL, "chat"),
        ),
        Cache(
            "targets per plan (routing/failover.py)",
            lambda: failover._targets[id(plan)],
            lambda: route_targets(plan, failover._state),
        ),
        Cache("address per URL (http/client/client.py)", lambda: target, lambda: Target.of(url)),
        Cache(
            "written request headers (http/client/target.py)",
            lambda: target.request_headers(sent_headers, 570),
            lambda: target._write(sent_headers),
        ),
        Cache(
            "prices per model (pricing/book.py)",
            lambda: book._prices("openai", MODEL),
            lambda: book._find("openai", MODEL),
        ),
        Cache(
            "period per budget (budgets/budget.py)",
            lambda: budgets.reservations(max_cost_nanousd=1, at_ns=NOW_NS),
            _clearing(budgets._bounds, lambda: budgets.reservations(max_cost_nanousd=1, at_ns=NOW_NS)),
        ),
        Cache(
            "checked Host headers (service/app.py)",
            lambda: guard.check(request),
            _clearing(guard._seen, lambda: guard.check(request)),
        ),
        *_recorder_caches(),
        Cache("template of a chunk (relay/event_template.py)", _stream(templates=True), _stream(templates=False)),
    ]


def _recorder_caches() -> list[Cache]:
    recorder = Recorder()
    for label, value in (("endpoint", "/v1"), ("model", MODEL), ("team", "t"), ("provider", "openai")):
        recorder.label_allowlist.register(label, [value])
    call = Call(
        id="call_1",
        started_at_ns=NOW_NS,
        endpoint="/v1",
        method="POST",
        team="t",
        llm=LlmTarget(provider="openai", model=MODEL),
    )
    settlement = Settlement(
        call=call,
        ended_at_ns=NOW_NS + 10**9,
        duration_ns=10**9,
        status="200",
        outcome="ok",
        usage=Usage(prompt_tokens=11, completion_tokens=7, source="reported"),
        charge=Charge(nanousd=97_500, source="listed"),
        finish_reason="stop",
    )
    recorder.settle(settlement)

    def settle() -> None:
        recorder.settle(settlement)

    return [
        Cache("cells per model call (metrics/model_calls.py)", settle, _clearing(recorder._model_calls, settle)),
        Cache("cells per request (metrics/recorder.py)", settle, _clearing(recorder._request_cells, settle)),
    ]


def _clearing(cache: Any, step: Step) -> Step:
    def run() -> None:
        cache.clear()
        step()

    return run


def _stream(*, templates: bool) -> Step:
    """Feed one chunk of a long stream."""
    tee, chunks, turn = StreamTee(OpenAiChat(), withhold_usage=False), [CHUNK % b"some", CHUNK % b" words"], 0
    if not templates:
        tee._next_template_at = 2**62

    def feed() -> None:
        nonlocal turn
        turn += 1
        tee.feed(chunks[turn & 1])

    for _ in range(64):
        feed()
    return feed


def saved_us(cache: Cache, pairs: int = PAIRS, rounds: int = ROUNDS) -> list[float]:
    """Microseconds of CPU that the cache saves per step, one value per pair; every second pair begins with the miss."""
    saved = []
    for pair in range(pairs):
        first, second = (cache.hit, cache.miss) if pair % 2 else (cache.miss, cache.hit)
        times = {step: _cpu_ns(step, rounds) for step in (first, second)}
        saved.append((times[cache.miss] - times[cache.hit]) / rounds / 1000)
    return saved


def _cpu_ns(step: Step, rounds: int) -> int:
    began = time.process_time_ns()
    for _ in range(rounds):
        step()
    return time.process_time_ns() - began


def main() -> None:
    """Print a row per cache."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print("| cache | saves µs per step, median (95 % interval) |\n| --- | ---: |")
    for cache in caches():
        cache.hit(), cache.miss()
        median, low, high = median_interval(saved_us(cache))
        print(f"| {cache.name} | {median:.2f} ({low:.2f}–{high:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
