"""An upstream that speaks every dialect and costs nothing: exact known usage, faults on demand, its own books."""

from __future__ import annotations

from mcpmeter.simulator.app import Price, Simulator
from mcpmeter.simulator.billing_log import Books, CallRecord, Totals
from mcpmeter.simulator.fault_proxy import FaultProxy
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.latency import Latency, Spread
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.quota import Quota
from mcpmeter.simulator.thread import SimulatorThread, run_in_thread
from mcpmeter.simulator.wire_faults import WireFault

__all__ = [
    "Books",
    "CallRecord",
    "Fault",
    "FaultProxy",
    "Latency",
    "Plan",
    "Price",
    "Quota",
    "Simulator",
    "SimulatorThread",
    "Spread",
    "Totals",
    "WireFault",
    "run_in_thread",
]
