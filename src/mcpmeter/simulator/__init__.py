"""The simulated upstream: every dialect at no cost, with exact usage, faults on demand and a billing log.

Owns the simulator and the fault proxy. Shares no code with the relay's parsing and metering, so that tests compare two
independent counts. Invariants: the same seed and request give the same bytes; each call is billed exactly once, before
its last byte is written.
"""

from __future__ import annotations

from mcpmeter.simulator.app import Price, Simulator
from mcpmeter.simulator.billing_log import BillingLog, CallRecord, Totals
from mcpmeter.simulator.fault_proxy import FaultProxy
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.latency import Latency, Spread
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.quota import Quota
from mcpmeter.simulator.thread import SimulatorThread, run_in_thread
from mcpmeter.simulator.wire_faults import WireFault

__all__ = [
    "BillingLog",
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
