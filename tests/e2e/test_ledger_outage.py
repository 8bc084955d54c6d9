"""The ledger fails between a call's row and its settlement, in every way it can; after a third of the times, kill -9.

A round: calls are sent and their rows are open; the ledger fails; the provider answers some of them; then the service
is killed and started again, or the ledger comes back and the others are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import apsw
import httpx2
import pytest
from tests.conftest import PostgresServer
from tests.disks import immutable, loop_mounted, make_image, small_disk
from tests.e2e.conftest import Stand
from tests.outages import moved, replaced

from mcpmeter.ledger.location import location_of
from mcpmeter.ledger.maintenance.verify import verify

CALLS = 6
ANSWERED_DURING_THE_OUTAGE = 4
LANES = 2
"""Services at a time."""
MESSAGES = [{"role": "user", "content": "Count."}]
BUDGET = "budgets: [{name: whole, limit_usd: 1000000}]\n"
PROMPT_TOKENS = 17


class Upstream:
    """A provider that holds each call until it is released, and bills completion tokens that no other call has."""

    def __init__(self) -> None:
        self.held: list[asyncio.Future[None]] = []
        self.round = 0
        self.served: dict[int, int] = {}
        """Completion tokens of the calls whose answer was sent, and the round of each."""
        self.url = ""
        self._numbers = itertools.count(100)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def release(self, count: int | None = None) -> None:
        released, self.held = self.held[:count], [] if count is None else self.held[count:]
        for held in released:
            if not held.done():
                held.set_result(None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:")
                request = json.loads(await reader.readexactly(length))
                held, of_round = asyncio.get_running_loop().create_future(), self.round
                self.held.append(held)
                await held
                number = next(self._numbers)
                writer.write(_answer(number, stream=request.get("stream", False)))
                await writer.drain()
                self.served[number] = of_round
        except (OSError, asyncio.IncompleteReadError):
            pass  # the relay was killed
        finally:
            writer.close()


def _answer(number: int, *, stream: bool) -> bytes:
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": number, "total_tokens": PROMPT_TOKENS + number}
    common = {"id": f"chatcmpl-{number}", "created": 1, "model": "gpt-4.1"}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": "stop"}
        kind, body = "application/json", json.dumps({
            **common, "object": "chat.completion", "choices": [choice], "usage": usage,
        }).encode()  # fmt: skip
    else:
        choices = [{"index": 0, "delta": {"content": "one"}, "finish_reason": None}]
        ends = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        common["object"] = "chat.completion.chunk"
        events = [
            {**common, "choices": choices},
            {**common, "choices": ends},
            {**common, "choices": [], "usage": usage},
        ]
        kind = "text/event-stream"
        body = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


Failure = Callable[[Path], AbstractContextManager[None]]
"""Makes the ledger fail until the block ends."""


@contextlib.contextmanager
def locked(ledger: Path) -> Iterator[None]:
    with contextlib.closing(apsw.Connection(str(ledger))) as other:
        other.set_busy_timeout(5_000)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def full(ledger: Path) -> Iterator[None]:
    ballast = ledger.with_name("ballast")
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    yield
    ballast.unlink()


def read_only(ledger: Path) -> AbstractContextManager[None]:
    return immutable(ledger, ledger.with_name("ledger.db-wal"))


def all_read_only(ledger: Path) -> AbstractContextManager[None]:
    return immutable(ledger, ledger.with_name("ledger.db-wal"), ledger.with_name("ledger.db.pending"))


@contextlib.contextmanager
def on_ext4(folder: Path) -> Iterator[Path]:
    with loop_mounted(make_image(folder / "image", 64 * 2**20), folder / "disk") as disk:
        yield disk


@contextlib.contextmanager
def on_small_disk(folder: Path) -> Iterator[Path]:
    with small_disk(folder / "disk", "24m") as disk:
        yield disk


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[Path]:
    yield folder


@dataclass(frozen=True)
class Stage:
    """Ledgers of one place, and the ways in which they fail there, in turn."""

    disk: Callable[[Path], AbstractContextManager[Path]]
    failures: Mapping[str, Failure]
    rounds: int
    """In full."""
    rounds_per_ledger: int = 30


UNWRITABLE_PENDING_FILE = "read-only with its pending file"
STAGES = (
    Stage(in_folder, {"locked": locked, "moved": moved, "replaced": replaced}, 500),
    Stage(on_ext4, {"read-only": read_only, UNWRITABLE_PENDING_FILE: all_read_only}, 200),
    # A log that has grown to its full size needs no room, so the ledger is a new one before.
    Stage(on_small_disk, {"full disk": full}, 180, 12),
)
POSTGRES_ROUNDS = 120


@contextlib.contextmanager
def stopped(server: PostgresServer, number: signal.Signals) -> Iterator[None]:
    server.stop(number)
    yield
    server.start()


@contextlib.contextmanager
def hanging(server: PostgresServer) -> Iterator[None]:
    postmaster = server.process.pid
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    pids = [postmaster, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def postgres_failures(server: PostgresServer) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
    return {
        "PostgreSQL stopped": lambda: stopped(server, signal.SIGINT),
        "PostgreSQL killed": lambda: stopped(server, signal.SIGKILL),
        "PostgreSQL hangs": lambda: hanging(server),
    }


@dataclass
class Found:
    """What the rounds found."""

    rounds: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    answered: int = 0
    waited: int = 0
    known: int = 0
    missing: int = 0
    duplicates: int = 0
    recovered: int = 0
    not_counted: int = 0
    still_open: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


class Life:
    """Rounds on one ledger, over as many processes as kills make."""

    def __init__(self, stand: Stand, upstream: Upstream, found: Found, random: Random) -> None:
        self._stand = stand
        self._upstream = upstream
        self._found = found
        self._random = random
        self._is_opening = False
        self._must_have: set[int] = set()
        """Completion tokens that the ledger has to have, once: the client has its answer, or no kill followed."""

    async def start(self) -> None:
        await asyncio.to_thread(self._stand.start_relay)

    async def round(self, outage: Callable[[], AbstractContextManager[None]], *, kill: bool, is_kept: bool) -> None:
        self._found.kills += kill
        self._upstream.round += 1
        self._is_opening = True
        async with httpx2.AsyncClient(timeout=60, verify=False) as http:
            calls = [asyncio.create_task(self._call(http, stream=number % 2 == 1)) for number in range(CALLS)]
            await _until(lambda: len(self._upstream.held) == CALLS)
            self._is_opening = False
            with outage():
                began = time.monotonic()
                self._upstream.release(ANSWERED_DURING_THE_OUTAGE)
                if kill and self._random.random() < 0.3:  # in the middle of the settlements
                    await asyncio.sleep(self._random.uniform(0, 0.4))
                else:
                    await _until(lambda: sum(call.done() for call in calls) == ANSWERED_DURING_THE_OUTAGE)
                    self._found.slowest_s = max(self._found.slowest_s, time.monotonic() - began)
                    pending = await asyncio.to_thread(self._stand.total, "mcp_settlements_pending")
                    self._found.waited += pending > 0
                    done = sum(call.result() is not None for call in calls if call.done())
                    if is_kept and done != ANSWERED_DURING_THE_OUTAGE:
                        self._found.wrong.append(f"{done} of {ANSWERED_DURING_THE_OUTAGE} calls were answered")
                if kill:
                    self._stand.relay.send(signal.SIGKILL)
                    await asyncio.to_thread(self._stand.relay.end, None)
            self._upstream.release()
            answered = [number for number in await asyncio.gather(*calls) if number is not None]
        self._found.answered += len(answered)
        self._must_have.update(answered)
        if kill:
            await self._restart()
        else:
            self._must_have |= {
                number for number, of_round in self._upstream.served.items() if of_round == self._upstream.round
            }

    async def _restart(self) -> None:
        before = sum(row["outcome"] == "recovered" for row in await asyncio.to_thread(self._stand.rows))
        await self.start()
        if not isinstance(self._stand.ledger, Path):
            return  # a replica's rows are recovered when its lease has ended
        rows = await asyncio.to_thread(self._stand.rows)
        recovered = sum(row["outcome"] == "recovered" for row in rows) - before
        counted = await asyncio.to_thread(self._stand.total, "mcp_ledger_recovered_total")
        self._found.not_counted += abs(int(counted) - recovered)
        self._found.still_open += sum(row["state"] == "open" for row in rows)

    async def _call(self, http: httpx2.AsyncClient, *, stream: bool) -> int | None:
        """The completion tokens of a whole answer; None if there was none."""
        body: dict[str, Any] = {"model": "gpt-4.1", "max_tokens": 100_000, "messages": MESSAGES}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        while True:
            try:
                answer = await http.post(f"{self._stand.address}/v1/chat/completions", json=body)
            except httpx2.HTTPError:
                return None
            if not self._is_opening:
                return _completion_tokens(answer, stream=stream)
            await asyncio.sleep(0.02)  # refused: the ledger of the last round is not back yet

    async def end(self) -> None:
        """Wait until everything is settled, end the service, and compare the ledger with what has to be in it."""
        await _until_async(lambda: asyncio.to_thread(self._is_settled))
        await asyncio.to_thread(self._stand.relay.end)
        rows = await asyncio.to_thread(self._stand.rows)
        ok = Counter(row["completion_tokens"] for row in rows if row["outcome"] == "ok")
        exact = {
            row["completion_tokens"]
            for row in rows
            if (row["state"], row["token_source"], row["prompt_tokens"]) == ("settled", "reported", PROMPT_TOKENS)
        }
        self._found.known += len(self._must_have)
        self._found.missing += len(self._must_have - exact)
        self._found.duplicates += sum(count - 1 for count in ok.values())
        self._found.recovered += sum(row["outcome"] == "recovered" for row in rows)
        self._found.still_open += sum(row["state"] == "open" for row in rows)
        verdict = await asyncio.to_thread(verify, location_of(str(self._stand.ledger)))
        self._found.wrong += verdict.wrong

    def _is_settled(self) -> bool:
        samples = self._stand.samples()
        waiting = ("mcp_settlements_pending", "mcp_ledger_open_rows", "mcp_budget_reserved_usd")
        if any(sample.value for name in waiting for sample in samples.get(name, ())):
            return False
        return not any(row["state"] == "open" for row in self._stand.rows())


def _completion_tokens(answer: httpx2.Response, *, stream: bool) -> int | None:
    if answer.status_code != 200:
        return None
    if not stream:
        return int(answer.json()["usage"]["completion_tokens"])
    if not answer.content.endswith(b"data: [DONE]\n\n"):
        return None
    return int(json.loads(answer.content.split(b"\n\n")[-3][6:])["usage"]["completion_tokens"])


async def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def _until_async(holds: Callable[[], Any], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.1)


class Trial:
    """All rounds, on ledgers of their own."""

    def __init__(self, start: Callable[..., Any], run: Callable[..., Any], folder: Path, *, full: bool) -> None:
        self.found = Found()
        self._start = start
        self._run = run
        self._folder = folder
        self._full = full
        self._numbers = itertools.count(1)
        self._rounds = itertools.count()
        self._random = Random(31)

    async def on_files(self) -> None:
        """Each failure of a file, on several services at a time."""
        ledgers = [
            (stage, min(stage.rounds_per_ledger, rounds - done))
            for stage in STAGES
            for rounds in [stage.rounds if self._full else len(stage.failures)]
            for done in range(0, rounds, stage.rounds_per_ledger)
        ]
        self._random.shuffle(ledgers)

        async def lane() -> None:
            while ledgers:
                stage, rounds = ledgers.pop()
                folder = self._folder / f"ledger-{next(self._numbers)}"
                folder.mkdir()
                with stage.disk(folder) as disk:
                    ledger = disk / "ledger.db"
                    outages = {name: partial(fails, ledger) for name, fails in stage.failures.items()}
                    await self._on_ledger(ledger, outages, rounds)

        await asyncio.gather(*(lane() for _ in range(LANES)))

    async def on_postgres(self, server: PostgresServer) -> None:
        """Each failure of a database."""
        outages = postgres_failures(server)
        await self._on_ledger(server.new_database(), outages, POSTGRES_ROUNDS if self._full else len(outages))

    async def _on_ledger(
        self, ledger: Path | str, outages: Mapping[str, Callable[[], AbstractContextManager[None]]], rounds: int
    ) -> None:
        folder = self._folder / f"service-{next(self._numbers)}"
        folder.mkdir()
        stand, upstream = Stand(self._start, self._run, folder), Upstream()
        await upstream.start()
        stand.ledger, stand.upstream = ledger, upstream.url
        stand.configure(extra=BUDGET)
        life, names = Life(stand, upstream, self.found, self._random), list(outages)
        await life.start()
        for number in range(rounds):
            name = names[(number + number // len(names)) % len(names)]  # so that each is followed by a kill
            self.found.rounds[name] += 1
            kill = next(self._rounds) % 3 == 1
            await life.round(outages[name], kill=kill, is_kept=name != UNWRITABLE_PENDING_FILE)
        await life.end()
        upstream.close()


@pytest.mark.trial
async def test_no_known_cost_is_lost_when_the_ledger_fails(start, run, tmp_path, postgres_to_kill, trials):
    trial = Trial(start, run, tmp_path, full=trials.full)
    began = time.monotonic()
    await asyncio.gather(trial.on_files(), trial.on_postgres(postgres_to_kill))
    found = trial.found
    trials.record(
        "The ledger fails between a call's row and its settlement",
        f"In each round {CALLS} calls, half of them streams, are open when the ledger fails; the provider answers "
        f"{ANSWERED_DURING_THE_OUTAGE} of them. In a third of the rounds kill -9 follows, sometimes in the middle of "
        "the settlements, and the service starts again; otherwise the ledger comes back and the others are answered. A "
        "cost counts as known if a client has the whole answer, or if the provider sent it and no kill followed. Each "
        "has to be in the ledger once, with the provider's tokens. At the end of each ledger nothing is open or "
        "reserved, and it is verified.",
        {
            **{f"rounds: {name}": count for name, count in found.rounds.items()},
            "rounds": found.rounds.total(),
            "of them with kill -9": found.kills,
            "rounds in which settlements were seen to wait for the ledger": found.waited,
            "answers that clients received whole": found.answered,
            "known costs": found.known,
            "known costs missing from the ledger, or with other tokens": found.missing,
            "duplicates": found.duplicates,
            "calls that a kill left open and that were recovered": found.recovered,
            "of them marked but not counted, or counted but not marked": found.not_counted,
            "rows open after a start or at the end": found.still_open,
            "faults found by verify, and rounds in which a client got no answer": len(found.wrong),
            "seconds until the last answer of a round during the outage, maximum": found.slowest_s,
            "minutes": (time.monotonic() - began) / 60,
        },
    )
    assert found.wrong == []
    assert (found.missing, found.duplicates, found.not_counted, found.still_open) == (0, 0, 0, 0)
    assert found.recovered > 0, "no kill hit an open call"
    assert found.waited > 0, "no outage held up a settlement"
