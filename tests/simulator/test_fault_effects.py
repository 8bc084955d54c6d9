"""Faults of the chat dialect and of the plan, beyond those that `test_every_dialect` covers."""

import pytest

from mcpmeter.simulator import Fault, Simulator

BOTH = pytest.mark.parametrize("stream", [False, True])


async def test_statuses_that_are_no_errors(post):
    assert (await post("status=204")).content == b""
    assert (await post("status=302")).headers["location"]
    assert (await post("status=200")).json == {}


async def test_retry_after_can_be_a_fraction(post):
    assert (await post("status=429,retry_after=0.5")).headers["retry-after"] == "0.5"


@BOTH
async def test_a_reset_inside_a_chunk_leaves_it_incomplete(post, stream):
    response = await post("reset=chunk", stream=stream)
    assert response.was_reset
    assert response.content.rpartition(b"\r\n")[0].endswith(b"\r\n1000")


async def test_malformed_json_has_a_correct_length(post):
    response = await post("body=malformed_json")
    assert len(response.content) == int(response.headers["content-length"])


async def test_malformed_sse_replaces_a_json_body(sim, post):
    response = await post("body=malformed_sse")
    assert response.headers["content-type"] == "application/json"
    assert response.body.startswith(b"data: {")
    assert sim.billing_log.totals.fault == 1


async def test_usage_can_appear_twice(post):
    assert len((await post("usage=twice", stream=True)).usages) == 2
    assert (await post("usage=twice")).body.count(b'"usage":{') == 2


@pytest.mark.parametrize("include_usage", [False, True])
async def test_usage_can_be_in_the_last_chunk_with_choices(post, include_usage):
    response = await post("usage=with_choices", stream_options={"include_usage": include_usage}, stream=True)
    with_usage = [chunk for chunk in response.chunks if chunk.get("usage")]
    assert with_usage == [response.chunks[-1]]
    assert with_usage[0]["choices"][0]["finish_reason"] == "stop"


async def test_planned_faults_are_as_frequent_as_set_and_repeatable(raw):
    statuses = []
    for _ in range(2):
        async with Simulator(seed=2, faults=[Fault(status=503, probability=0.3)]) as sim:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            statuses.append([(await raw(sim, body)).status for _ in range(100)])
            assert sim.billing_log.totals.fault == statuses[-1].count(503)
    assert statuses[0] == statuses[1]
    assert 15 <= statuses[0].count(503) <= 45


async def test_a_requested_fault_replaces_the_planned_one(raw):
    async with Simulator(faults=[Fault(status=503)]) as sim:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "metadata": {"simulate": "status=418"}}
        assert (await raw(sim, body)).status == 418


async def test_embeddings_take_faults(sim, raw):
    body = {"model": "text-embedding-3-small", "input": "x", "dimensions": 2}
    for simulate, status in [("status=503", 503), ("usage=missing", 200)]:
        response = await raw(sim, body | {"metadata": {"simulate": simulate}}, "/v1/embeddings")
        assert response.status == status
        assert "usage" not in response.json
