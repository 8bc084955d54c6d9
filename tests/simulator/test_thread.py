import socket
import threading

import pytest
from openai import OpenAI

from mcpmeter.errors import PortTaken
from mcpmeter.simulator import Fault, Simulator, SimulatorThread, run_in_thread

CHAT = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}


def simulators_running():
    """Threads of simulators; other tests may run some too."""
    return {thread for thread in threading.enumerate() if thread.name == "mcpmeter-simulator"}


def test_a_program_without_an_event_loop_uses_the_simulator():
    before = simulators_running()
    with run_in_thread(seed=1) as sim, OpenAI(base_url=sim.base_url, api_key="none") as client:
        response = client.chat.completions.create(**CHAT)
        sim.wait_until(lambda log: log.totals.complete == 1)
        assert sim.billing_log.totals.completion_tokens == response.usage.completion_tokens
    assert simulators_running() == before


def test_wait_until_sees_a_cancelled_call():
    with (
        SimulatorThread(Simulator(faults=[Fault(stall="body")])) as sim,
        OpenAI(base_url=sim.base_url, api_key="none") as client,
    ):
        stream = client.chat.completions.create(**CHAT, stream=True)
        next(iter(stream))
        stream.close()
        sim.wait_until(lambda log: log.totals.cancelled == 1)


def test_errors_at_start_are_raised_to_the_caller():
    before = simulators_running()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(PortTaken):
            run_in_thread(port=taken.getsockname()[1]).__enter__()
    assert simulators_running() == before


def test_two_simulators_are_independent():
    with run_in_thread(seed=1) as one, run_in_thread(seed=2) as two:
        assert one.url != two.url
        with OpenAI(base_url=one.base_url, api_key="none") as client:
            client.chat.completions.create(**CHAT)
        assert (one.billing_log.totals.calls, two.billing_log.totals.calls) == (1, 0)
