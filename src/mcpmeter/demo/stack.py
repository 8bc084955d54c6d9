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
"""Debian's name of the program, and upstream's."""
PORTS: Final = range(20_000, 32_000)
PORTS_TO_TRY: Final = 100


@dataclass(frozen=True, slots=True)
class StackStarted:
    """The addresses of the running programs."""

    prometheus: str
    alertmanager: str | None
    """None if it is not installed."""


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
    """Run both on free ports with the files of `mcpmeter monitoring write` for `options`; their data is in `folder`.

    `notify` is a webhook for the notifications that `options` has no webhook for. Raises MissingDependency, PortTaken.
    """
    program, manager = find_prometheus(), find_alertmanager()
    manager_address = f"127.0.0.1:{free_port()}" if manager else ""
    _write(_with_addresses(options, manager_address, notify), folder)
    async with AsyncExitStack() as parts:
        if manager:
            await parts.enter_async_context(_alertmanager(manager, folder, manager_address))
        config = folder / "prometheus" / "prometheus.yml"
        # Alerts that fire before Prometheus finds Alertmanager are sent again only after this delay.
        resend = f"--rules.alert.resend-delay={max(1, 60 // options.speedup)}s"
        running = _prometheus(program, config, folder / "prometheus-data", free_port(), resend)
        address = await parts.enter_async_context(running)
        yield StackStarted(address, f"http://{manager_address}" if manager else None)


def _with_addresses(options: MonitoringOptions, manager_address: str, notify: str) -> MonitoringOptions:
    receivers = options.receivers
    if notify:
        hook = Webhook(url=notify)
        receivers = replace(
            receivers, webhook=receivers.webhook or hook, dead_mans_switch=receivers.dead_mans_switch or hook
        )
    return replace(options, alertmanagers=(manager_address,) if manager_address else (), receivers=receivers)


def _write(options: MonitoringOptions, folder: Path) -> None:
    for path, content in files(options).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@asynccontextmanager
async def prometheus(
    target: str, folder: Path, *, port: int = 0, scrape_interval: str = "2s", config: Path | None = None
) -> AsyncIterator[str]:
    """Run only Prometheus, which scrapes `target` (a base URL); yields its address.

    A `config` file replaces `target` and `scrape_interval`.
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
        "--cluster.listen-address=",  # no cluster: it would look for peers on every interface
        "--log.level=error",
    )
    async with _running("Alertmanager", arguments, f"http://{address}") as url:
        yield url


@asynccontextmanager
async def _running(name: str, arguments: Sequence[str], address: str) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in the terminal must stop it through us
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
                pass  # not listening yet
            await asyncio.sleep(0.1)
    raise PortTaken(f"{name} did not start.", hint=f"Does another program listen on {urlsplit(address).netloc}?")


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
    """A free TCP port of 127.0.0.1. Raises PortTaken if all tried ports are taken.

    The range is outside of Linux's ephemeral ports, so that no other socket gets the port before the caller binds it.
    """
    for port in SystemRandom().sample(PORTS, PORTS_TO_TRY):
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PortTaken(f"{PORTS_TO_TRY} ports of 127.0.0.1 are taken.", hint="List the listening programs: ss -ltnp")
