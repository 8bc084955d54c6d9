"""The simulator as the official SDK and a plain client see it."""

import asyncio
import json
import math
from decimal import Decimal

import pytest
from openai import APIStatusError, AsyncOpenAI, AuthenticationError, BadRequestError, RateLimitError

from mcpmeter.errors import ConfigInvalid, PortTaken
from mcpmeter.simulator import Fault, Price, Quota, Simulator, Spread

ASK = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def client(sim):
    async with AsyncOpenAI(base_url=sim.base_url, api_key="none", max_retries=0) as sdk:
        yield sdk


async def test_the_sdk_reads_an_answer_and_the_books_agree(sim, client):
    answer = await client.chat.completions.create(**ASK)
    (call,) = sim.billing_log.calls()
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (call.prompt_tokens, call.completion_tokens)
    assert answer._request_id == call.request_id
    assert call.outcome == "complete"
    assert call.delivered_tokens == call.completion_tokens == len(answer.choices[0].message.content.split())


async def test_the_sdk_reads_a_stream_whose_usage_comes_last_and_alone(sim, client):
    stream = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    (call,) = sim.billing_log.calls()
    assert chunks[-1].usage.completion_tokens == call.completion_tokens == len(text.split())
    assert call.stream


async def test_a_stream_has_no_usage_unless_asked(sim, client):
    chunks = [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert sim.billing_log.totals.complete == 1


async def test_a_streamed_tool_call_is_put_together_by_the_sdk(sim, client):
    tool = {
        "type": "function",
        "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
    }
    async with client.chat.completions.stream(**ASK, tools=[tool], tool_choice="required") as stream:
        answer = await stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look_up"
    assert isinstance(json.loads(call.function.arguments)["q"], str)
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_the_sdk_gets_n_choices_and_their_sum(client):
    answer = await client.chat.completions.create(**ASK, n=3, max_tokens=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 15


async def test_the_sdk_raises_its_own_errors(client):
    with pytest.raises(RateLimitError) as limited:
        await client.chat.completions.create(**ASK, metadata={"simulate": "status=429,retry_after=2"})
    assert limited.value.response.headers["retry-after"] == "2"
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(BadRequestError, match="messages"):
        await client.chat.completions.create(model="gpt-4.1", messages=[])


async def test_a_retry_of_the_sdk_succeeds_where_only_the_first_try_fails(sim):
    async with AsyncOpenAI(base_url=sim.base_url, api_key="none", max_retries=1) as sdk:
        wish = {"simulate": "status=503,retry_after=0.01,first=1"}
        answer = await sdk.chat.completions.create(**ASK, metadata=wish)
    assert answer.usage.completion_tokens == sim.billing_log.totals.completion_tokens
    assert (sim.billing_log.totals.fault, sim.billing_log.totals.complete) == (1, 1)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 64}])
async def test_embeddings_are_unit_vectors_and_equal_for_equal_texts(sim, client, options):
    model = "text-embedding-3-small"
    answer = await client.embeddings.create(model=model, input=["a cat", "a dog", "a cat"], **options)
    cat, dog, again = (item.embedding for item in answer.data)
    assert len(cat) == options.get("dimensions", 1536)
    assert math.fsum(x * x for x in cat) == pytest.approx(1, abs=1e-5)
    assert cat == again != dog
    assert answer.usage.prompt_tokens == sim.billing_log.totals_by_model[model].prompt_tokens == 6


async def test_models_are_listed_and_any_other_is_answered(client):
    assert "deepseek-v3.2" in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("mine")).id == "mine"
    assert (await client.chat.completions.create(**ASK | {"model": "mine"})).model == "mine"


async def test_a_key_is_demanded_on_every_route_where_one_is_set(raw):
    async with Simulator(key="sk-secret") as sim:
        for path, method in [("/v1/models", "GET"), ("/simulator/books", "DELETE"), ("/v1/chat/completions", "POST")]:
            for given in ("", "Authorization: Bearer sk-secre\r\n", "Authorization: Bearer sk-sécret\r\n"):
                refused = await raw(sim, ASK, path, method=method, headers=given)
                assert refused.status == 401
                assert refused.json["error"]["code"] == "invalid_api_key"
                assert "sk-" not in refused.body.decode()
        async with AsyncOpenAI(base_url=sim.base_url, api_key="sk-secret") as sdk:
            await sdk.chat.completions.create(**ASK)
        async with AsyncOpenAI(base_url=sim.base_url, api_key="other") as sdk:
            with pytest.raises(AuthenticationError):
                await sdk.chat.completions.create(**ASK)
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
async def test_wrong_urls_and_verbs_are_told_in_the_error_shape(sim, raw, path, method, status):
    answer = await raw(sim, b"", path, method=method)
    assert answer.status == status
    assert answer.json["error"]["message"]
    assert sim.billing_log.refused == 1


async def test_a_body_that_is_waited_for_with_100_continue_is_read(sim, raw):
    answer = await raw(sim, ASK, headers="Expect: 100-continue\r\n")
    assert answer.received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


async def test_the_same_seed_gives_the_same_bytes_whatever_the_order(raw):
    bodies = [ASK | {"seed": number % 3} for number in range(9)]
    answers = []
    for order in (bodies, bodies[::-1]):
        async with Simulator(seed=5) as sim:
            got = await asyncio.gather(*(raw(sim, body) for body in order))
            answers.append(sorted(answer.body for answer in got))
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 9
    async with Simulator(seed=6) as sim:
        assert (await raw(sim, ASK | {"seed": 0})).body not in answers[0]


async def test_the_cost_is_exact_to_its_last_digit(raw):
    prices = {"gpt-4.1": Price(Decimal("2.50"), Decimal("0.0000001"))}
    async with Simulator(prices=prices, completion_tokens=Spread.fixed(7)) as sim:
        assert (await raw(sim, ASK)).headers["x-cost-usd"] == "0.0000150000007"
        assert "x-cost-usd" not in (await raw(sim, ASK | {"model": "unpriced"})).headers
        streamed = await raw(sim, ASK | {"stream": True, "stream_options": {"include_usage": True}})
        assert b'"cost":0.0000150000007}' in streamed.body
        assert "x-cost-usd" not in streamed.headers


async def test_limits_count_down_and_an_enforced_one_refuses(raw):
    async with Simulator(quota=Quota(requests=2, enforce=True)) as sim:
        answers = [await raw(sim, ASK) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    spent = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in answers[:2]]
    assert spent[0] - spent[1] == answers[1].json["usage"]["total_tokens"]


async def test_the_answer_names_a_dated_snapshot_if_wanted(raw):
    async with Simulator(dated_models=True) as sim:
        assert (await raw(sim, ASK)).json["model"] == "gpt-4.1-2025-04-14"
        assert (await raw(sim, ASK | {"metadata": {"simulate": "dated_model=false"}})).json["model"] == "gpt-4.1"


async def test_the_plan_is_shown_and_changed_while_running(sim, raw):
    put = await raw(sim, b'{"faults":["status=503:1"]}', "/simulator/plan", method="PUT")
    assert put.status == 200
    assert (await raw(sim, ASK)).status == 503
    shown = await raw(sim, b"", "/simulator/plan", method="GET")
    assert [fault["status"] for fault in shown.json["faults"]] == [503]
    refused = await raw(sim, b'{"faults":["status=1"]}', "/simulator/plan", method="PUT")
    assert refused.status == 400
    assert sim.plan.faults == (Fault(status=503),)


async def test_the_books_are_shown_and_cleared_over_http(sim, raw):
    for _ in range(3):
        await raw(sim, ASK)
    shown = (await raw(sim, b"", "/simulator/books?calls=2", method="GET")).json
    assert shown["totals"]["calls"] == shown["by_model"]["gpt-4.1"]["complete"] == 3
    assert [call["ordinal"] for call in shown["calls"]] == [1, 2]
    assert (await raw(sim, b"", "/simulator/books?calls=-1", method="GET")).status == 400
    assert (await raw(sim, b"", "/simulator/books", method="DELETE")).status == 204
    assert sim.billing_log.totals.calls == 0


async def test_a_taken_port_is_told_in_one_sentence(sim):
    port = int(sim.url.rpartition(":")[2])
    with pytest.raises(PortTaken, match=f"127.0.0.1:{port} .*choose another port"):
        await Simulator(port=port).start()


async def test_the_address_of_a_simulator_that_does_not_run_is_an_error():
    with pytest.raises(ConfigInvalid, match="does not run"):
        _ = Simulator().url


async def test_one_client_after_another_is_served_on_one_connection(sim, client):
    for _ in range(20):
        with pytest.raises(APIStatusError):
            await client.chat.completions.create(**ASK, metadata={"simulate": "status=500"})
        await client.chat.completions.create(**ASK)
    assert (sim.billing_log.totals.fault, sim.billing_log.totals.complete, sim.billing_log.open_calls) == (20, 20, 0)
