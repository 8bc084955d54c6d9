"""The simulator for programs and tests without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Self

from mcpmeter.simulator.app import Simulator
from mcpmeter.simulator.billing_log import BillingLog


class SimulatorThread:
    """Runs a simulator in its own thread: `with SimulatorThread(Simulator(seed=1)) as sim: sim.base_url`.

    The `with` statement raises `PortTaken`.
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
    def billing_log(self) -> BillingLog:
        """As `Simulator.billing_log`; read it after the calls have ended."""
        return self.simulator.billing_log

    def wait_until(self, holds: Callable[[BillingLog], bool], *, timeout_seconds: float = 60.0) -> None:
        """Wait until `holds` is true for the billing log. Raises `TimeoutError`."""
        waiting = self.billing_log.wait_until(holds, timeout_seconds=timeout_seconds)
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
