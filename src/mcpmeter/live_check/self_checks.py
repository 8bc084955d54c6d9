"""Checks what the service depends on: the ledger, the clock, the providers."""

from __future__ import annotations

import asyncio
import os
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from mcpmeter.errors import LedgerNotUsable, MeterError
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.opening import open_store
from mcpmeter.ledger.sqlite.connection import explain, open_for_writing
from mcpmeter.ledger.sqlite.migrations import transaction
from mcpmeter.live_check.check_result import CheckResult, Live, Unreachable, failed, not_checked, ok
from mcpmeter.routing.routes import Upstream

MAX_SECONDS_OFF: Final = 5.0


async def ledger(live: Live) -> list[CheckResult]:
    """Check that a row can be written durably, even beside a running service."""
    location = live.settings.ledger.location
    if isinstance(location, PostgresUrl):
        return [await _database(live, location)]
    if not location.exists():
        return [_folder(location)]
    try:
        await asyncio.to_thread(_write, location)
    except LedgerNotUsable as fault:
        return [failed("ledger", fault.message, fault.hint)]
    return [ok("ledger", f"{location} can be written")]


async def _database(live: Live, url: PostgresUrl) -> CheckResult:
    ledger = live.settings.ledger
    store = open_store(url, lease_s=ledger.lease_seconds, connect_s=ledger.connect_seconds)
    try:
        await store.start()
        await store.probe()
    except MeterError as fault:
        return failed("ledger", fault.message, fault.hint)
    finally:
        await store.close()
    return ok("ledger", f"{url} can be written")


def _folder(path: Path) -> CheckResult:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return ok("ledger", f"{path} does not exist yet and can be created")
    return failed("ledger", f"{path.parent} cannot be written", "Grant this user write access, or set 'ledger.path'.")


def _write(path: Path) -> None:
    db = open_for_writing(path)
    try:
        with explain(path), transaction(db):
            db.execute("INSERT OR REPLACE INTO probe VALUES (1, ?)", (time.time_ns(),))
    finally:
        db.close()


async def clock(live: Live) -> list[CheckResult]:
    """Check this machine's clock, by which periods, prices and expiry dates are decided."""
    offsets: dict[str, float] = {}
    for name, url in _time_sources(live):
        try:
            _, _, date = await live.get(url)
            offsets[name] = abs(time.time() - parsedate_to_datetime(date).timestamp())
        except (Unreachable, ValueError):
            continue  # its own check reports it
    if not offsets:
        return [not_checked("clock", "no part that reports its time could be reached")]
    name, seconds = min(offsets.items(), key=lambda item: item[1])
    if seconds > MAX_SECONDS_OFF:
        says = f"{seconds:.0f} s off the clock of {name}"
        return [failed("clock", says, "Run a time service: systemctl enable --now systemd-timesyncd")]
    return [ok("clock", f"within {MAX_SECONDS_OFF:g} s of {name}'s")]


def _time_sources(live: Live) -> list[tuple[str, str]]:
    upstreams = [(upstream.name, upstream.provider.base_url) for upstream in live.settings.upstreams()]
    return [*upstreams, *((name, url) for name, url in (("Prometheus", live.addresses.prometheus),) if url)]


async def providers(live: Live) -> list[CheckResult]:
    """Check that each provider is reachable and accepts its keys."""
    return [await _provider(live, upstream) for upstream in live.settings.upstreams()]


async def _provider(live: Live, upstream: Upstream) -> CheckResult:
    name = f"provider {upstream.name}"
    provider = upstream.provider
    url = f"{provider.base_url}/models"
    for credential in upstream.credentials:
        try:
            status = await _status(live, url, provider.auth_headers(credential.secret, _own_path(upstream)))
        except Unreachable as fault:
            return failed(name, f"{provider.base_url} {fault}", "Check its base_url, the network and DNS.")
        if status in (401, 403):
            says = f"it refuses the key {credential.id} (HTTP {status})"
            return failed(name, says, "Create a new key at the provider.")
        if status >= 500:
            return failed(name, f"it responds with status {status}", "Check the provider's status page.")
    if status == 404:
        return ok(name, f"{provider.base_url} responds; it lists no models, so its key was not checked")
    return ok(name, f"{provider.base_url} responds and accepts {_keys(upstream)}")


def _own_path(upstream: Upstream) -> str:
    """The path whose authentication lists models: that of `messages` for providers with `x-api-key`."""
    paths = upstream.provider.path_auth
    return "messages" if "messages" in paths else ""


async def _status(live: Live, url: str, headers: dict[str, str]) -> int:
    more = {"anthropic-version": "2023-06-01"} if "x-api-key" in headers else {}
    return await live.status_of(url, {**headers, **more})


def _keys(upstream: Upstream) -> str:
    if not upstream.api_key:
        return "calls without a key"
    count = len(upstream.credentials)
    return "its key" if count == 1 else f"its {count} keys"
