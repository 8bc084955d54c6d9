"""An upstream that serves every dialect at no cost: exact usage, faults on demand, and a billing log of its own."""

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
