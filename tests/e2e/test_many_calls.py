"""200,000 calls over every dialect, whole, streamed, faulty and left: the ledger is the provider's own count.

The relay is the installed command; a few lines started before it count its asyncio tasks when they are asked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
from tests.e2e.watching import COUNTING_TASKS, Resources, at_rest

from mcpmeter.ledger.sqlite.connection import open_for_reading

CALLS = 1_500
CALLS_IN_FULL = 200_000
SAMPLES = 20
"""Of resident memory, evenly spread over the calls: one for each 10,000 in full."""

MAX_GROWTH_MB = 8.0
"""Between the medians of the second and the last quarter of the samples: what allocators and caches still settle."""

AT_ONCE = 64
SECONDS_FOR_A_CALL = 60.0

UPSTREAM_KEY = "sk-simulated-upstream"
SIMULATOR_ENV = {"MCPMETER_SIMULATOR_KEY": UPSTREAM_KEY}

USER = [{"role": "user", "content": "Tell me something short about the tides."}]
PRICES_USD_PER_MTOK = {
    "gpt-4.1": (Decimal("2.50"), Decimal("10.00")),
    "claude-sonnet-4.5": (Decimal("3.00"), Decimal("15.00")),
    "gemini-2.5-flash": (Decimal("0.10"), Decimal("0.40")),
    "deepseek-v3.2": (Decimal("0.27"), Decimal("1.10")),
}
"""The published guide's list, prompt and completion."""


@dataclass(frozen=True)
class Form:
    """A dialect and a shape of its answers. `{model}` in the path is where Gemini names it."""

    dialect: str
    """As the simulator's books name it."""
    path: str
    models: tuple[str, str]
    """One that has a price and one that has none; no other dialect has them, so that sums by model are by dialect."""
    stream: bool = False
    is_row_a_stream: bool = False
    maps_faults: bool = False

    @property
    def endpoint(self) -> str:
        return self.path.partition("?")[0]

    def body(self, model: str, simulate: str) -> bytes:
        match self.dialect:
            case "openai_chat":
                asked = {"model": model, "messages": USER, "stream": self.stream, "metadata": {"simulate": simulate}}
            case "openai_responses":
                text = USER[0]["content"]
                asked = {"model": model, "input": text, "stream": self.stream, "metadata": {"simulate": simulate}}
            case "openai_embeddings":
                asked = {"model": model, "input": ["the tides", "the moon"], "metadata": {"simulate": simulate}}
                asked["dimensions"] = 8
            case "anthropic_messages":
                wish = {"user_id": f"simulate:{simulate}"} if simulate else {}
                asked = {"model": model, "max_tokens": 500, "messages": USER, "stream": self.stream, "metadata": wish}
            case _:
                asked = {"contents": [{"role": "user", "parts": [{"text": USER[0]["content"]}]}]}
                asked |= {"labels": {"simulate": simulate}} if simulate else {}
        return json.dumps(asked).encode()


def forms() -> Iterator[Form]:
    chat, responses = ("gpt-4.1", "house-chat"), ("deepseek-v3.2", "house-responses")
    messages, gemini = ("claude-sonnet-4.5", "house-messages"), ("gemini-2.5-flash", "house-gemini")
    for stream in (False, True):
        yield Form("openai_chat", "/v1/chat/completions", chat, stream, stream)
        yield Form("openai_chat", "/mcp/chat", chat, stream, stream, maps_faults=True)
        yield Form("openai_responses", "/v1/responses", responses, stream, stream)
        yield Form("anthropic_messages", "/v1/messages", messages, stream, stream)
    yield Form("openai_embeddings", "/v1/embeddings", ("text-embedding-3-small", "house-embeddings"))
    yield Form("gemini_generate", "/v1beta/models/{model}:generateContent", gemini)
    yield Form("gemini_generate", "/v1beta/models/{model}:streamGenerateContent?alt=sse", gemini, True, True)
    yield Form("gemini_generate", "/v1beta/models/{model}:streamGenerateContent", gemini)


FORMS = tuple(forms())
STREAMS = tuple(form for form in FORMS if form.stream)


@dataclass(frozen=True)
class Kind:
    """What happens to a call. All but whole calls carry the kind in the model's name, by which sums are told apart."""

    name: str
    weight: int
    simulate: str = ""
    outcome: str = "ok"
    status: int = 200
    mapped_status: int = 0
    """Where the endpoint maps faults; else the same."""
    streamed_outcome: str = ""
    """Where the fault of a stream comes after its first byte; else the same, and the client is told by the status."""
    leaves: bool = False


KINDS = (
    Kind("whole", 72),
    Kind("without-usage", 2, "usage=missing"),
    Kind("wrong-usage", 1, "usage=negative"),
    Kind("unavailable", 3, "status=503", "error", 503, 502),
    Kind("rate-limited", 3, "status=429", "error", 429),
    Kind("unauthorised", 1, "status=401", "error", 502),
    Kind("refused", 3, "status=400", "error", 400),
    Kind("reset", 2, "reset=headers", "error", 502),
    Kind("cut-off", 3, "reset=body,after_tokens=2,completion_tokens=9", "error", 502, streamed_outcome="partial"),
    Kind("html-page", 2, "body=html", "error", 502),
    Kind("disconnected", 8, "stall=body,after_tokens=2,completion_tokens=9", "partial", leaves=True),
)


@dataclass(frozen=True)
class Job:
    """One call to make."""

    form: Form
    kind: Kind
    model: str
    url: str
    body: bytes

    @classmethod
    def of(cls, form: Form, kind: Kind, model: str) -> Job:
        url = form.path.replace("{model}", model)
        return cls(form, kind, model, url, form.body(model, kind.simulate))

    @property
    def mark(self) -> tuple[str, str, bool]:
        """As the ledger knows it."""
        return self.form.endpoint, self.model, self.form.is_row_a_stream

    @property
    def status(self) -> int:
        if self.kind.streamed_outcome and self.form.stream:
            return 200
        return (self.kind.mapped_status if self.form.maps_faults else 0) or self.kind.status

    @property
    def outcome(self) -> str:
        return (self.kind.streamed_outcome if self.form.stream else "") or self.kind.outcome


def jobs(count: int, random: Random) -> Iterator[Job]:
    """Drawn by weight; a few hundred different bodies in all, each asked for again and again."""
    made: dict[tuple[Form, Kind, str], Job] = {}
    for kind in random.choices(KINDS, [kind.weight for kind in KINDS], k=count):
        form = random.choice(STREAMS if kind.leaves else FORMS)
        model = random.choice(form.models) if kind.name == "whole" else f"{kind.name}-{form.dialect}"
        key = form, kind, model
        job = made[key] = made.get(key) or Job.of(*key)
        yield job


def sampled(todo: Iterator[Job], every: int, take: Callable[[], None]) -> Iterator[Job]:
    """The same jobs; `take` is called after each so many."""
    for number, job in enumerate(todo, 1):
        yield job
        if number % every == 0:
            take()


def quarter(memory: list[float], number: int) -> float:
    """The median of one quarter of the samples."""
    size = len(memory) // 4
    return statistics.median(memory[size * (number - 1) : size * number])


@dataclass
class Seen:
    """What the clients asked for and saw."""

    asked: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    seconds: float = 0.0


async def make_calls(address: str, todo: Iterator[Job]) -> Seen:
    """At most `AT_ONCE` calls at a time, each over a connection that is used again unless its client has left."""
    seen, began = Seen(), time.monotonic()
    limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx2.AsyncClient(base_url=address, timeout=SECONDS_FOR_A_CALL, limits=limits, verify=False) as http:

        async def work() -> None:
            for job in todo:
                seen.asked[job.mark] += 1
                seen.by_kind[job.kind.name] += 1
                await make_call(http, job, seen.surprises)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    seen.seconds = time.monotonic() - began
    return seen


async def make_call(http: httpx2.AsyncClient, job: Job, surprises: list[str]) -> None:
    headers = {"content-type": "application/json"}
    try:
        async with http.stream("POST", job.url, content=job.body, headers=headers) as answer:
            if answer.status_code != job.status:
                surprises.append(f"{job.mark}: {answer.status_code}")
            if job.kind.leaves:
                await anext(answer.aiter_raw())
            else:
                await answer.aread()
    except httpx2.HTTPError as fault:
        surprises.append(f"{job.mark}: {type(fault).__name__}")


@dataclass(frozen=True)
class Group:
    """Rows of one endpoint, model and shape, summed up by the ledger itself."""

    calls: int
    states: str
    outcomes: str
    sources: str
    tokens: tuple[int, int, int]
    """Prompt, completion, reasoning."""
    nanousd: int


GROUPS_SQL = """
SELECT endpoint, model, stream, count(*), group_concat(DISTINCT state), group_concat(DISTINCT outcome),
  group_concat(DISTINCT token_source), sum(prompt_tokens), sum(completion_tokens), sum(reasoning_tokens),
  sum(cost_nanousd)
FROM calls GROUP BY endpoint, model, stream
"""


def groups_of(ledger: Path) -> dict[tuple[str, str, bool], Group]:
    with contextlib.closing(open_for_reading(ledger)) as db:
        found = db.execute(GROUPS_SQL).fetchall()
    return {
        (endpoint, model, bool(stream)): Group(calls, states, outcomes, sources, (prompt, completion, reasoning), cost)
        for endpoint, model, stream, calls, states, outcomes, sources, prompt, completion, reasoning, cost in found
    }


def configure(stand: Any) -> None:
    """A provider for each family of dialects, both of them the simulator, at the guide's prices."""
    shared = "api_key: '${UPSTREAM_KEY}', price_list: holysheep"
    stand.config.write_text(
        f"server: {{port: 0}}\n"
        f"ledger: {{path: {stand.ledger}}}\n"
        f"providers:\n"
        f"  - {{name: house, type: generic, base_url: '{stand.upstream}/v1', {shared}}}\n"
        f"  - {{name: gemini, base_url: '{stand.upstream}/v1beta', {shared}}}\n"
    )


def begin(stand: Any, start: Callable[..., Any], tasks_file: Path) -> Any:
    """Start the simulator, which is returned, and the relay before it."""
    simulator = start("simulate", "--port", 0, "--seed", 9, "--completion-tokens", "uniform:2-16", env=SIMULATOR_ENV)
    stand.upstream = simulator.says(r"Simulator at (http://\S+)")[1]
    configure(stand)
    stand.relay = start(
        "serve",
        "--config",
        stand.config,
        env={"UPSTREAM_KEY": UPSTREAM_KEY, "TASKS_FILE": str(tasks_file)},
        through=(sys.executable, "-c", COUNTING_TASKS),
    )
    stand.address = stand.relay.says(r"OpenAI SDKs +(http://\S+)/v1")[1]
    return simulator


@pytest.mark.trial
@pytest.mark.timeout(1800)
async def test_the_ledger_is_the_providers_own_count_over_every_dialect_fault_and_abort(stand, start, trials, tmp_path):
    simulator = begin(stand, start, tasks_file := tmp_path / "tasks")
    relay = Resources(stand.relay.process.pid, tasks_file)
    stand.samples()
    descriptors_before, tasks_before, mb_before = relay.descriptors(), await relay.tasks(), relay.resident_mb()

    count = CALLS_IN_FULL if trials.full else CALLS
    memory: list[float] = []
    seen = await make_calls(
        stand.address, sampled(jobs(count, Random(17)), count // SAMPLES, lambda: memory.append(relay.resident_mb()))
    )

    def gauges() -> tuple[float, float, int]:
        active, rows = stand.total("mcp_active_requests"), stand.total("mcp_ledger_open_rows")
        return active, rows, stand.billing_log()["open_calls"]

    gauges_after = await at_rest(gauges, lambda told: not any(told))
    groups, books, samples = groups_of(stand.ledger), stand.billing_log(), stand.samples()
    simulator.end()  # it closes its side of every connection that was kept for further calls
    descriptors = await at_rest(relay.descriptors, lambda held: held <= descriptors_before)
    tasks, mb = await relay.tasks(), relay.resident_mb()

    rows = sum(group.calls for group in groups.values())
    kept = Counter({mark: group.calls for mark, group in groups.items()})
    misfits = ((kept - seen.asked) + (seen.asked - kept)).total()
    wrong = differences(groups, books["by_model"])
    trials.record(
        "Two hundred thousand calls",
        "Chat, the guide's endpoint, responses, embeddings, messages and Gemini's three forms, JSON and streams, 64 at "
        "a time. Over a quarter of the calls fail: refused, rate-limited, reset, cut off, an HTML page as the "
        "response, no usage, or a client that disconnects in the middle of a stream. The simulator's billing log has "
        "what it billed.",
        {
            "calls": count,
            **{f"of them {kind.name}": seen.by_kind[kind.name] for kind in KINDS},
            "calls per second": count / seen.seconds,
            "rows in the ledger": rows,
            "surplus or missing rows, summed over all groups": misfits,
            "calls in the provider's billing log": books["totals"]["calls"],
            "whole calls: tokens in the provider's billing log": sum(map(sum, told_tokens(books["by_model"]).values())),
            "whole calls: wrong tokens, summed over dialects and models": sum(wrong.values()),
            "mcp_active_requests at the end": int(gauges_after[0]),
            "mcp_ledger_open_rows at the end": int(gauges_after[1]),
            "calls still open at the provider": gauges_after[2],
            "file descriptors before": descriptors_before,
            "file descriptors after": descriptors,
            "asyncio tasks before": tasks_before,
            "asyncio tasks after": tasks,
            "resident memory before, MB": mb_before,
            "resident memory in the first quarter of the calls, MB": quarter(memory, 1),
            "resident memory in the second quarter, MB": quarter(memory, 2),
            "resident memory in the last quarter, MB": quarter(memory, 4),
            "resident memory after, MB": mb,
        },
    )

    assert seen.surprises == []
    assert gauges_after == (0, 0, 0)
    assert kept == seen.asked
    assert {group.states for group in groups.values()} == {"settled"}
    assert (rows, books["totals"]["calls"], books["refused"]) == (count, count, 0)
    assert wrong == {}
    check_outcomes(groups)
    check_cost(groups)
    check_counters(samples, groups)
    assert descriptors <= descriptors_before
    assert tasks <= tasks_before
    # A share of the calls ends while caches still fill: it shows only that the samples are taken.
    assert not trials.full or quarter(memory, 4) - quarter(memory, 2) <= MAX_GROWTH_MB
    finished = stand.relay.end()
    assert (finished.code, finished.faults) == (0, "")


WHOLE_MODELS = {model: form.dialect for form in FORMS for model in form.models}


def told_tokens(by_model: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Of whole calls, what the provider billed: prompt, completion, reasoning."""
    kinds = ("prompt_tokens", "completion_tokens", "reasoning_tokens")
    return {model: tuple(by_model[model][kind] for kind in kinds) for model in WHOLE_MODELS}


def differences(groups: dict[Any, Group], by_model: dict[str, Any]) -> dict[str, int]:
    """By model of whole calls, and so by dialect: how many tokens and calls the ledger is off."""
    found = {}
    for model, billed in told_tokens(by_model).items():
        mine = [group for (_, named, _), group in groups.items() if named == model]
        kept = [sum(column) for column in zip(*(group.tokens for group in mine), strict=True)]
        off = sum(abs(a - b) for a, b in zip(kept, billed, strict=True))
        off += abs(by_model[model]["complete"] - sum(group.calls for group in mine))
        if off:
            found[model] = off
    return found


def check_outcomes(groups: dict[Any, Group]) -> None:
    """All rows of a kind ended alike, and say where their tokens came from."""
    by_mark: dict[tuple[str, str, bool], set[str]] = {}
    for form, kind in itertools.product(FORMS, KINDS):
        models = form.models if kind.name == "whole" else (f"{kind.name}-{form.dialect}",)
        for model in models:
            job = Job.of(form, kind, model)
            by_mark.setdefault(job.mark, set()).add(job.outcome)
    for mark, group in groups.items():
        assert set(group.outcomes.split(",")) == by_mark[mark], mark
        kind = next((kind.name for kind in KINDS if mark[1].startswith(f"{kind.name}-")), "whole")
        assert group.sources == SOURCES[kind], mark
        if group.sources == "":
            assert (group.tokens, group.nanousd) == ((0, 0, 0), 0)


SOURCES = {
    "whole": "reported",
    "without-usage": "estimated",
    "wrong-usage": "estimated",
    **dict.fromkeys(("unavailable", "rate-limited", "unauthorised", "refused"), ""),
    **dict.fromkeys(("reset", "cut-off", "html-page", "disconnected"), "partial"),
}


def check_cost(groups: dict[Any, Group]) -> None:
    """Each whole call at its list price, to the nano-dollar."""
    for (_, model, _), group in groups.items():
        if model in PRICES_USD_PER_MTOK:
            prompt, completion = PRICES_USD_PER_MTOK[model]
            assert group.nanousd == (prompt * group.tokens[0] + completion * group.tokens[1]) * 1000


def check_counters(samples: dict[str, list[Any]], groups: dict[Any, Group]) -> None:
    """The counters are fed from the same settlements as the rows."""

    def total(name: str, **labels: str) -> float:
        return sum(sample.value for sample in samples.get(name, ()) if labels.items() <= sample.labels.items())

    for place, kind in enumerate(("prompt", "completion")):
        assert total("mcp_tokens_total", token_type=kind) == sum(group.tokens[place] for group in groups.values())
    for endpoint in {endpoint for endpoint, _, _ in groups}:
        asked = sum(group.calls for mark, group in groups.items() if mark[0] == endpoint)
        assert total("mcp_requests_total", endpoint=endpoint, method="POST") == asked
    cost = sum(group.nanousd for group in groups.values())
    assert round(Decimal(repr(total("mcp_cost_usd_total"))) * 10**9) == cost
