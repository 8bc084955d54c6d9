"""Responses as providers document them, through the real relay, against amounts worked out by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import time_machine
from pydantic import SecretStr
from tests.integration.conftest import RawUpstream, Relay, _files_in, raw_upstream, starting_relays
from tests.world.bodies import FOLDER, NOW, Body, World, worlds

from mcpmeter.config import PricingSettings, ProviderSettings
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.rows import SELECT_ROWS_SQL, row_of
from mcpmeter.records import LedgerRow, Settlement

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORLDS = worlds()
BODIES = [pytest.param(world, body, id=f"{name}: {body.id}") for name, world in WORLDS.items() for body in world.bodies]
COUNTS = ("prompt", "completion", "cached_read", "cache_write", "reasoning", "audio")

upstream = pytest_asyncio.fixture(scope="module", loop_scope="module", name="upstream")(raw_upstream.__wrapped__)


@pytest.fixture(scope="module")
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOW, tick=True) as traveller:
        yield traveller


class Meter:
    """A relay before the scripted upstream, with one provider at a time."""

    def __init__(self, relay: Relay, upstream: RawUpstream, settled: list[Settlement]) -> None:
        self._relay = relay
        self._upstream = upstream
        self._settled = settled
        self._world: World | None = None

    async def row_of(self, world: World, body: Body) -> tuple[LedgerRow, Settlement]:
        """What the ledger has of a body's call, and the settlement that it is written from."""
        if self._world is not world:
            await self._serve(world)
        self._upstream.play(world.answer_to(body))
        self._settled.clear()
        path, request = world.request_to(body)
        reply = await self._relay.ask(request, path)
        assert reply.status == 200, reply.body
        call_id = reply.headers["x-mcpmeter-call-id"]
        await self._relay.until(lambda: bool(self._settled) and self._row(call_id).state == "settled", seconds=5)
        (settlement,) = self._settled
        return self._row(call_id), settlement

    def _row(self, call_id: str) -> LedgerRow:
        with open_reader(self._relay.ledger) as reader:
            (row,) = reader.rows(f"{SELECT_ROWS_SQL} WHERE id = '{call_id}'")
            return row_of(row)

    async def _serve(self, world: World) -> None:
        provider = ProviderSettings(
            name=world.provider,
            type=world.type or None,
            base_url=self._upstream.url.removesuffix("/v1") + world.base,
            api_key=SecretStr("sk-upstream-credential-0123456789"),
            price_list=world.price_list or None,
            models=tuple({body.model or world.model for body in world.bodies}),
        )
        settings = self._relay.settings.model_copy(update={"providers": (provider,)})
        self._relay.service._load = lambda: settings
        await self._relay.service.reload()
        self._world = world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def meter(
    clock: time_machine.Traveller, upstream: RawUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Meter]:
    async with starting_relays(_files_in(tmp_path_factory.mktemp("world"))) as start:
        pricing = PricingSettings(files=(FOLDER / "own.toml",))
        relay = await start(upstream=upstream.url, pricing=pricing)
        settled: list[Settlement] = []
        recorder, count = relay.service.recorder, relay.service.recorder.settle

        def settle(settlement: Settlement, **more: Any) -> None:
            settled.append(settlement)
            count(settlement, **more)

        recorder.settle = settle
        yield Meter(relay, upstream, settled)


@pytest.mark.parametrize(("world", "body"), BODIES)
async def test_costs_what_the_page_says(meter: Meter, clock: time_machine.Traveller, world: World, body: Body) -> None:
    clock.move_to(body.at, tick=True)
    row, settlement = await meter.row_of(world, body)
    charge = settlement.charge
    assert charge is not None
    lines = charge.lines
    found = {
        "cost": row.cost_nanousd,
        "source": row.cost_source,
        "tokens": {name: number for name in COUNTS if (number := getattr(row, f"{name}_tokens"))},
        "unpriced": {line.item: line.quantity for line in lines if line.nanousd is None},
    }
    expected = {"cost": body.nanousd, "source": body.source, "tokens": body.tokens, "unpriced": body.unpriced}
    if body.items is not None:
        priced = [line for line in lines if line.nanousd is not None and line.quantity]
        found["items"] = {line.item + (f" {line.model}" if line.model else ""): line.quantity for line in priced}
        expected["items"] = body.items
    if body.price_list:
        found["price_list"], expected["price_list"] = row.price_list, body.price_list
    assert found == expected
    if row.cost_source == "listed" and lines:
        assert sum(line.nanousd or 0 for line in lines) == row.cost_nanousd


async def test_every_provider_of_the_issue_has_bodies() -> None:
    assert sum(len(world.bodies) for world in WORLDS.values()) >= 120
    assert all(len(world.bodies) >= 4 for world in WORLDS.values())
