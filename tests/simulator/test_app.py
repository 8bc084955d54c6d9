"""The simulator through OpenAI's SDK and over HTTP."""

import asyncio
import math
from decimal import Decimal

import pytest
from openai import APIStatusError, AsyncOpenAI, AuthenticationError

from mcpmeter.errors import ConfigInvalid, PortTaken
from mcpmeter.simulator import Fault, Price, Quota, Simulator, Spread

CHAT = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def client(sim):
    async with AsyncOpenAI(base_url=sim.base_url, api_key="none", max_retries=0) as sdk:
        yield sdk


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 64}])
async def test_embeddings_are_unit_vectors_equal_for_equal_texts(sim, client, options):
    model = "text-embedding-3-small"
    response = await client.embeddings.create(model=model, input=["a cat", "a dog", "a cat"], **options)
    cat, dog, again = (item.embedding for item in response.data)
    assert len(cat) == options.get("dimensions", 1536)
    assert math.fsum(x * x for x in cat) == pytest.approx(1, abs=1e-5)
    assert cat == again != dog
    assert response.usage.prompt_tokens == sim.billing_log.totals_by_model[model].prompt_tokens == 6


async def test_unlisted_models_respond_too(client):
    assert "deepseek-v3.2" in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("mine")).id == "mine"
    assert (await client.chat.completions.create(**CHAT | {"model": "mine"})).model == "mine"


async def test_a_set_key_is_required_on_every_route(raw):
    async with Simulator(key="sk-secret") as sim:
        for path, method in [("/v1/models", "GET"), ("/simulator/books", "DELETE"), ("/v1/chat/completions", "POST")]:
            for given in ("", "Authorization: Bearer sk-secre\r\n", "Authorization: Bearer sk-sécret\r\n"):
                refused = await raw(sim, CHAT, path, method=method, headers=given)
                assert refused.status == 401
                assert refused.json["error"]["code"] == "invalid_api_key"
                assert "sk-" not in refused.body.decode()
        async with AsyncOpenAI(base_url=sim.base_url, api_key="sk-secret") as sdk:
            await sdk.chat.completions.create(**CHAT)
        async with AsyncOpenAI(base_url=sim.base_url, api_key="other") as sdk:
            with pytest.raises(AuthenticationError):
                await sdk.chat.completions.create(**CHAT)
        assert sim.billing_log.totals.calls == 1


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 404),
        ("/v1/nothing", "POST", 404),
        ("/v1/chat/completions", "GET", 405),
        ("/simulator/plan", "POST", 405),
    ],
)
async def test_unknown_urls_and_methods_get_the_error_format(sim, raw, path, method, status):
    response = await raw(sim, b"", path, method=method)
    assert response.status == status
    assert response.json["error"]["message"]
    assert sim.billing_log.refused == 1


async def test_expect_100_continue_is_supported(sim, raw):
    response = await raw(sim, CHAT, headers="Expect: 100-continue\r\n")
    assert response.received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


async def test_the_same_seed_gives_the_same_bytes_in_any_order(raw):
    bodies = [CHAT | {"seed": number % 3} for number in range(9)]
    responses = []
    for order in (bodies, bodies[::-1]):
        async with Simulator(seed=5) as sim:
            got = await asyncio.gather(*(raw(sim, body) for body in order))
            responses.append(sorted(response.body for response in got))
    assert responses[0] == responses[1]
    assert len(set(responses[0])) == 9
    async with Simulator(seed=6) as sim:
        assert (await raw(sim, CHAT | {"seed": 0})).body not in responses[0]


async def test_the_cost_keeps_all_digits(raw):
    prices = {"gpt-4.1": Price(Decimal("2.50"), Decimal("0.0000001"))}
    async with Simulator(prices=prices, completion_tokens=Spread.fixed(7)) as sim:
        assert (await raw(sim, CHAT)).headers["x-cost-usd"] == "0.0000150000007"
        assert "x-cost-usd" not in (await raw(sim, CHAT | {"model": "unpriced"})).headers
        streamed = await raw(sim, CHAT | {"stream": True, "stream_options": {"include_usage": True}})
        assert b'"cost":0.0000150000007}' in streamed.body
        assert "x-cost-usd" not in streamed.headers


async def test_limits_count_down_and_refuse_if_enforced(raw):
    async with Simulator(quota=Quota(requests=2, enforce=True)) as sim:
        responses = [await raw(sim, CHAT) for _ in range(3)]
    assert [response.status for response in responses] == [200, 200, 429]
    assert [response.headers["x-ratelimit-remaining-requests"] for response in responses] == ["1", "0", "0"]
    assert 1 <= int(responses[2].headers["retry-after"]) <= 60
    spent = [int(response.headers["x-ratelimit-remaining-tokens"]) for response in responses[:2]]
    assert spent[0] - spent[1] == responses[1].json["usage"]["total_tokens"]


async def test_the_response_can_name_a_dated_snapshot(raw):
    async with Simulator(dated_models=True) as sim:
        assert (await raw(sim, CHAT)).json["model"] == "gpt-4.1-2025-04-14"
        assert (await raw(sim, CHAT | {"metadata": {"simulate": "dated_model=false"}})).json["model"] == "gpt-4.1"


async def test_the_plan_can_be_read_and_replaced_over_http(sim, raw):
    put = await raw(sim, b'{"faults":["status=503:1"]}', "/simulator/plan", method="PUT")
    assert put.status == 200
    assert (await raw(sim, CHAT)).status == 503
    shown = await raw(sim, b"", "/simulator/plan", method="GET")
    assert [fault["status"] for fault in shown.json["faults"]] == [503]
    refused = await raw(sim, b'{"faults":["status=1"]}', "/simulator/plan", method="PUT")
    assert refused.status == 400
    assert sim.plan.faults == (Fault(status=503),)


async def test_the_billing_log_can_be_read_and_cleared_over_http(sim, raw):
    for _ in range(3):
        await raw(sim, CHAT)
    shown = (await raw(sim, b"", "/simulator/books?calls=2", method="GET")).json
    assert shown["totals"]["calls"] == shown["by_model"]["gpt-4.1"]["complete"] == 3
    assert [call["ordinal"] for call in shown["calls"]] == [1, 2]
    assert (await raw(sim, b"", "/simulator/books?calls=-1", method="GET")).status == 400
    assert (await raw(sim, b"", "/simulator/books", method="DELETE")).status == 204
    assert sim.billing_log.totals.calls == 0


async def test_a_taken_port_is_an_error_with_a_hint(sim):
    port = int(sim.url.rpartition(":")[2])
    with pytest.raises(PortTaken, match=f"127.0.0.1:{port} .*choose another port"):
        await Simulator(port=port).start()


async def test_a_stopped_simulator_has_no_url():
    with pytest.raises(ConfigInvalid, match="does not run"):
        _ = Simulator().url


async def test_one_connection_carries_errors_and_responses(sim, client):
    for _ in range(20):
        with pytest.raises(APIStatusError):
            await client.chat.completions.create(**CHAT, metadata={"simulate": "status=500"})
        await client.chat.completions.create(**CHAT)
    assert (sim.billing_log.totals.fault, sim.billing_log.totals.complete, sim.billing_log.open_calls) == (20, 20, 0)
