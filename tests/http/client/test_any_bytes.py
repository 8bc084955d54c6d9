"""Responses cut, damaged or made of any bytes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.http.client.responses import CHUNKED, INVALID, OK, PARTS, SHORT, TOO_SHORT, WHOLE
from tests.http.client.scripted_server import (
    LIMIT,
    PATIENT,
    Provider,
    assert_nothing_is_left,
    call,
    connection_in_memory,
    post,
    silent,
)

from mcpmeter.errors import InvalidUpstreamResponse, MeterError, UpstreamDisconnected, UpstreamFault
from mcpmeter.http.client import Http1Client


async def outcome_of(parts: Iterable[bytes], *, ends: bool = True) -> tuple[int, bytes] | type[MeterError]:
    """What a call makes of an response that comes in these parts."""
    client = Http1Client(PATIENT, max_connections=1)
    _connection, wire = connection_in_memory(client)
    task = asyncio.create_task(call(client, Provider(silent(), url="http://wire.example/")))
    await asyncio.sleep(0)
    for part in parts:
        if wire.is_closing():
            break
        wire.receive(part)
        await asyncio.sleep(0)
    if ends:
        wire.end()
    try:
        return await task
    except MeterError as error:
        return type(error)
    finally:
        await client.close()
        assert_nothing_is_left(client, 1)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start != end]


async def test_junk_behind_a_piped_response_does_not_harm_it():
    client = Http1Client(PATIENT, max_connections=1)
    _, wire = connection_in_memory(client)
    piping = asyncio.create_task(piped(client))
    await asyncio.sleep(0)
    wire.receive(SHORT + b"HTTP/1.1 junk")
    assert await piping == b"hello"
    await client.close()
    assert_nothing_is_left(client, 1)


async def piped(client: Http1Client) -> bytes:
    response = await post(client, Provider(silent(), url="http://wire.example/"))
    parts: list[bytes] = []
    await response.pipe(lambda part: not parts.append(part), LIMIT)
    response.finish()
    return b"".join(parts)


PLACES = st.lists(st.integers(0, 1 << 16), max_size=12)


@pytest.mark.parametrize("name", WHOLE)
async def test_a_response_cut_in_two_is_the_same(name):
    wire, status, body, _ = WHOLE[name]
    for place in range(1, len(wire)):
        assert await outcome_of(cut(wire, [place]), ends=False) == (status, body)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(WHOLE)), places=PLACES)
async def test_a_response_cut_anywhere_is_the_same(name, places):
    wire, status, body, _ = WHOLE[name]
    assert await outcome_of(cut(wire, places)) == (status, body)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(INVALID)), places=PLACES)
async def test_an_invalid_response_cut_anywhere_is_refused(name, places):
    assert await outcome_of(cut(INVALID[name], places)) is InvalidUpstreamResponse


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(TOO_SHORT)), places=PLACES)
async def test_a_short_response_cut_anywhere_is_a_disconnect(name, places):
    assert await outcome_of(cut(TOO_SHORT[name], places)) is UpstreamDisconnected


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.binary(max_size=40)
        | st.sampled_from(
            (OK, CHUNKED, SHORT, PARTS, b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"Content-Length: 3\r\n", b"X: \r\n")
        ),
        max_size=10,
    )
)
async def test_any_bytes_are_a_response_or_an_upstream_fault(parts):
    outcome = await outcome_of(parts)
    assert isinstance(outcome, tuple) or issubclass(outcome, UpstreamFault)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=3)), min_size=1, max_size=3),
    places=PLACES,
)
async def test_a_damaged_response_is_read_or_an_upstream_fault(name, changes, places):
    data = WHOLE[name][0]
    for place, change in changes:
        at = place % len(data)
        data = data[:at] + change + data[at + 1 :]
    outcome = await outcome_of(cut(data, places))
    assert isinstance(outcome, tuple) or issubclass(outcome, UpstreamFault)
