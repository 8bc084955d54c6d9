"""Calls and settlements to write, and ledgers of both engines to write them into."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest

from mcpmeter.ledger.location import Location, location_of
from mcpmeter.ledger.postgres.store import PostgresStore
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import Store
from mcpmeter.records import Call, Charge, LlmTarget, Reservation, Scope, Settlement, Usage

STARTED_AT_NS = 1_793_534_400_000_000_000  # 2026-11-01T12:00:00Z
BUDGET = Reservation(
    balance="team=research|month",
    period_start_ns=1_793_491_200_000_000_000,
    period_end_ns=1_796_083_200_000_000_000,
    amount=5_000,
    limit=10**15,
    scope=Scope(team="research"),
)


@pytest.fixture(scope="session")
def make_call() -> Callable[..., Call]:
    numbers = itertools.count()

    def make(**changes: Any) -> Call:
        llm = {
            "provider": "holysheep",
            "model": "deepseek-v3.2",
            "stream": True,
            "prompt_tokens_estimate": 11,
            **{name: changes.pop(name) for name in ("provider", "model", "operation") if name in changes},
        }
        defaults = {
            "id": f"call_{next(numbers):012x}",
            "started_at_ns": STARTED_AT_NS,
            "endpoint": "/v1/chat/completions",
            "method": "POST",
            "team": "research",
            "key_id": "key_0123456789ab",
            "llm": LlmTarget(**llm),
        }
        return Call(**{**defaults, **changes})

    return make


@pytest.fixture(scope="session")
def make_settlement() -> Callable[..., Settlement]:
    def make(call: Call, *, tokens: int = 7, nanousd: int = 1_890, **changes: Any) -> Settlement:
        defaults = {
            "ended_at_ns": STARTED_AT_NS + 5,
            "duration_ns": 5,
            "status": "200",
            "usage": Usage(prompt_tokens=tokens, completion_tokens=2 * tokens, source="reported"),
            "charge": Charge(nanousd=nanousd, source="listed", price_list="holysheep 2026-11-01"),
        }
        return Settlement(call=call, **{**defaults, **changes})

    return make


ENGINES = ("sqlite", "postgres")

NewLedger = Callable[[], Location]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The ledger's engine: a test with this fixture, or with `ledger`, runs on each."""
    return str(request.param)


@pytest.fixture(scope="module")
def new_ledger(engine: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewLedger:
    """Locations for ledgers of this engine, which do not exist yet."""
    if engine == "sqlite":
        return lambda: tmp_path_factory.mktemp("ledger") / "state" / "ledger.db"
    server = request.getfixturevalue("postgres_server")
    return lambda: location_of(server.new_database())


@pytest.fixture
def ledger(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """The location of a ledger of this engine, which does not exist yet."""
    return (
        tmp_path / "state" / "ledger.db" if engine == "sqlite" else location_of(request.getfixturevalue("postgres_url"))
    )


MakeStore = Callable[..., Store]


@pytest.fixture(scope="session")
def make_store() -> MakeStore:
    """A store for a location of either engine, not started."""

    def make(location: Location, **options: Any) -> Store:
        if isinstance(location, Path):
            return SqliteStore(location, **options)
        # The deadline is by the clock, and a machine under load may give a test less than a share of it.
        return PostgresStore(location, **({"connect_s": 60.0} | options))

    return make


@pytest.fixture
async def engine_store(make_store: MakeStore, ledger: Location) -> AsyncIterator[Store]:
    """A started store of each engine on `ledger`."""
    store = make_store(ledger)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def held() -> Callable[[Location], contextlib.AbstractContextManager[None]]:
    """Holds the ledger by another connection, so that no commit ends before the block does."""

    @contextlib.contextmanager
    def hold(place: Location) -> Iterator[None]:
        if isinstance(place, Path):
            other = apsw.Connection(str(place))
            other.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                other.execute("ROLLBACK")
                other.close()
        else:
            with psycopg.connect(place.reveal()) as db:
                db.execute("LOCK TABLE mcpmeter.calls IN EXCLUSIVE MODE")
                yield

    return hold


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.start()
    yield store
    await store.close()


Fill = Callable[..., list[Call]]


@pytest.fixture
def fill(path: Path, make_call: Callable[..., Call], make_settlement: Callable[..., Settlement]) -> Fill:
    """Writes settled calls into the ledger at `path`, a minute apart and under a budget; leaves some open."""

    async def write(count: int, left_open: int, values: dict[str, Any]) -> list[Call]:
        store = SqliteStore(path)
        await store.start()
        calls = [
            make_call(**{"started_at_ns": STARTED_AT_NS + number * 60 * 10**9, "reservations": (BUDGET,), **values})
            for number in range(count + left_open)
        ]
        await asyncio.gather(*(store.open(call) for call in calls))
        await asyncio.gather(*(store.settle(make_settlement(call)) for call in calls[:count]))
        await store.close()
        return calls

    return lambda count, left_open=0, **values: asyncio.run(write(count, left_open, values))
