"""A real Prometheus beside the service, for the demo and for tests."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from mcpmeter.errors import PartMissing, PortTaken

SECONDS_TO_BE_READY: Final = 20.0
SECONDS_TO_STOP: Final = 5.0


def find_prometheus() -> str:
    """The program's path. Raises PartMissing with the command that installs it."""
    found = shutil.which("prometheus")
    if found is None:
        raise PartMissing(
            "Prometheus is not on the PATH.", hint="On Debian: apt-get install prometheus. Or run without --stack."
        )
    return found


@asynccontextmanager
async def prometheus(
    target: str, folder: Path, *, port: int = 0, scrape_interval: str = "2s", config: Path | None = None
) -> AsyncIterator[str]:
    """Run Prometheus scraping `target` (a base URL), its data in `folder`; yields its address, ends it afterwards.

    A `config` of one's own stands in the place of `target` and `scrape_interval`.
    """
    program = find_prometheus()
    port = port or free_port()
    config = config or _write_config(folder, target, scrape_interval)
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=error",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C on the terminal is ours to hand on
    )
    try:
        address = f"http://127.0.0.1:{port}"
        await _until_ready(address, process)
        yield address
    finally:
        await _end(process)


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


async def _until_ready(address: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(SECONDS_TO_BE_READY), aiohttp.ClientSession() as session:
        while process.returncode is None:
            try:
                async with session.get(f"{address}/-/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # it does not listen yet
            await asyncio.sleep(0.1)
    raise PortTaken("Prometheus did not start.", hint=f"Is {urlsplit(address).netloc} taken by another one?")


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
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
