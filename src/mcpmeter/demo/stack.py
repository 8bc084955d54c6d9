"""A real Prometheus and Alertmanager beside the service, for the demo and for tests."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import SystemRandom
from typing import Final
from urllib.parse import urlsplit

import httpx2

from mcpmeter.errors import MissingDependency, PortTaken
from mcpmeter.monitoring.options import MonitoringOptions, Webhook
from mcpmeter.monitoring.render import files

SECONDS_TO_BE_READY: Final = 20.0
SECONDS_TO_STOP: Final = 5.0
ALERTMANAGER_NAMES: Final = ("prometheus-alertmanager", "alertmanager")
"""Debian's name for it, and everybody else's."""
PORTS: Final = range(20_000, 32_000)
PORTS_TO_TRY: Final = 100


@dataclass(frozen=True, slots=True)
class StackStarted:
    """Where the parts answer."""

    prometheus: str
    alertmanager: str | None
    """None where it is not installed."""


def find_prometheus() -> str:
    """The program's path. Raises MissingDependency with the command that installs it."""
    found = shutil.which("prometheus")
    if found is None:
        raise MissingDependency(
            "Prometheus is not on the PATH.", hint="On Debian: apt-get install prometheus. Or run without --stack."
        )
    return found


def find_alertmanager() -> str | None:
    """The program's path, or None."""
    return next((found for name in ALERTMANAGER_NAMES if (found := shutil.which(name))), None)


@asynccontextmanager
async def stack(options: MonitoringOptions, folder: Path, *, notify: str = "") -> AsyncIterator[StackStarted]:
    """Run both from what `mcpmeter monitoring write` makes of `options`, on free ports, with their data in `folder`.

    `notify`: a URL that every notification goes to, beside the receivers of `options`.
    Raises MissingDependency, PortTaken.
    """
    program, manager = find_prometheus(), find_alertmanager()
    manager_at = f"127.0.0.1:{free_port()}" if manager else ""
    made = _made_for(options, manager_at, notify)
    _write(made, folder)
    async with AsyncExitStack() as parts:
        if manager:
            await parts.enter_async_context(_alertmanager(manager, folder, manager_at))
        config = folder / "prometheus" / "prometheus.yml"
        # What fired before it had found Alertmanager is sent again only after this time.
        resend = f"--rules.alert.resend-delay={max(1, 60 // options.speedup)}s"
        started = _prometheus(program, config, folder / "prometheus-data", free_port(), resend)
        address = await parts.enter_async_context(started)
        yield StackStarted(address, f"http://{manager_at}" if manager else None)


def _made_for(options: MonitoringOptions, manager_at: str, notify: str) -> MonitoringOptions:
    receivers = options.receivers
    if notify:
        hook = Webhook(url=notify)
        receivers = replace(
            receivers, webhook=receivers.webhook or hook, dead_mans_switch=receivers.dead_mans_switch or hook
        )
    return replace(options, alertmanagers=(manager_at,) if manager_at else (), receivers=receivers)


def _write(options: MonitoringOptions, folder: Path) -> None:
    for path, content in files(options).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@asynccontextmanager
async def prometheus(
    target: str, folder: Path, *, port: int = 0, scrape_interval: str = "2s", config: Path | None = None
) -> AsyncIterator[str]:
    """Run Prometheus alone, scraping `target` (a base URL); yields its address, ends it afterwards.

    A `config` of one's own stands in the place of `target` and `scrape_interval`.
    """
    program = find_prometheus()
    config = config or _write_config(folder, target, scrape_interval)
    async with _prometheus(program, config, folder / "data", port or free_port()) as address:
        yield address


def _write_config(folder: Path, target: str, scrape_interval: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.yml"
    config.write_text(
        "global:\n"
        f"  scrape_interval: {scrape_interval}\n"
        "scrape_configs:\n"
        "  - job_name: mcpmeter\n"
        "    static_configs:\n"
        f"      - targets: ['{urlsplit(target).netloc}']\n"
    )
    return config


@asynccontextmanager
async def _prometheus(program: str, config: Path, data: Path, port: int, *more: str) -> AsyncIterator[str]:
    arguments = (
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=error",
        *more,
    )
    async with _running("Prometheus", arguments, f"http://127.0.0.1:{port}") as address:
        yield address


@asynccontextmanager
async def _alertmanager(program: str, folder: Path, address: str) -> AsyncIterator[str]:
    arguments = (
        program,
        f"--config.file={folder / 'alertmanager' / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager-data'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",  # alone: it would look for others on every interface
        "--log.level=error",
    )
    async with _running("Alertmanager", arguments, f"http://{address}") as reached:
        yield reached


@asynccontextmanager
async def _running(name: str, arguments: Sequence[str], address: str) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C on the terminal is ours to hand on
    )
    try:
        await _until_ready(name, address, process)
        yield address
    finally:
        await _end(process)


async def _until_ready(name: str, address: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(SECONDS_TO_BE_READY), httpx2.AsyncClient(trust_env=False) as http:
        while process.returncode is None:
            try:
                if (await http.get(f"{address}/-/ready")).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass  # it does not listen yet
            await asyncio.sleep(0.1)
    raise PortTaken(f"{name} did not start.", hint=f"Is {urlsplit(address).netloc} taken by another one?")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), SECONDS_TO_STOP)
    except TimeoutError:
        process.kill()
        await process.wait()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now. Raises PortTaken where all that are tried are taken.

    Linux hands out none of these by itself, so that nobody gets it before the program that it is for.
    """
    for port in SystemRandom().sample(PORTS, PORTS_TO_TRY):
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PortTaken(f"{PORTS_TO_TRY} ports of 127.0.0.1 are taken.", hint="See what listens there: ss -ltnp")
