"""The simulator for programs and tests that have no event loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Self

from mcpmeter.simulator.app import Simulator
from mcpmeter.simulator.billing_log import Books


class SimulatorThread:
    """Runs a simulator in a thread of its own: `with SimulatorThread(Simulator(seed=1)) as sim: sim.base_url`.

    What start-up raises (`PortTaken`) is raised by the `with` statement.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcpmeter-simulator", daemon=True)

    @property
    def url(self) -> str:
        """As `Simulator.url`."""
        return self.simulator.url

    @property
    def base_url(self) -> str:
        """As `Simulator.base_url`."""
        return self.simulator.base_url

    @property
    def books(self) -> Books:
        """As `Simulator.books`; read it when the calls of interest are done."""
        return self.simulator.books

    def wait_until(self, holds: Callable[[Books], bool], *, timeout_seconds: float = 10.0) -> None:
        """Wait until the books show what is expected. Raises `TimeoutError`."""
        waiting = self.books.wait_until(holds, timeout_seconds=timeout_seconds)
        asyncio.run_coroutine_threadsafe(waiting, self._loop).result()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.simulator.start(), self._loop).result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self.simulator.close(), self._loop).result()
        finally:
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def run_in_thread(**options: Any) -> SimulatorThread:
    """`with run_in_thread(seed=1, faults=[…]) as sim:`, with the options of `Simulator`."""
    return SimulatorThread(Simulator(**options))
