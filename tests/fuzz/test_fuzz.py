"""Every target on its seeds and on mutations of them: the share of `make fuzz` that runs with all tests."""

from __future__ import annotations

from importlib import import_module

import pytest
from tests.fuzz.harness import SuperLinear, Target, mutations

TOY = Target("toy", lambda data: None, len, (b"word",), grown_bytes=64 * 1024)
NAMES = ("server_protocol", "client_connection", "openai", "anthropic", "gemini", "stream_reader", "yaml")
MUTATIONS = 300


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = import_module(f"tests.fuzz.fuzz_{request.param}").TARGET
    return found


def test_every_seed_keeps_the_promises_in_linear_time(target):
    seeds = target.seeds()
    assert seeds
    for index, seed in enumerate(seeds):
        target.run(seed.read_bytes(), measured=index % 16 == 0)


def test_mutated_seeds_keep_the_promises(target):
    for data in mutations(target, MUTATIONS):
        try:
            target.run(data)
        except Exception as fault:
            fault.add_note(f"input: {data!r}")
            raise


def test_quadratic_time_is_found():
    target = TOY._replace(cost=lambda data: [data.count(b"ow") for _ in range(len(data) // 16)])
    with pytest.raises(SuperLinear):
        target.run(b"words", measured=True)


def test_linear_time_passes():
    TOY._replace(cost=lambda data: [byte * byte for byte in data * 64]).run(b"words", measured=True)
