"""Server-sent events: no byte is lost, and the cost is linear however the bytes are cut."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.sse import BLANK_LINES, EventSplitter, payloads, split_events

lines = st.text(alphabet="ab:\r\n", max_size=80).map(str.encode)


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (b"data: a\n\ndata:b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: {\ndata: }\n\n", [b"{\n}"]),
        (b": comment\nevent: x\ndata: a\nid: 1\n\n", [b"a"]),
        (b"data: a\n\ndata: without an end", [b"a", b"without an end"]),
        (b"retry: 5\n\n", []),
        (b"\xff\n\n\n", []),
    ],
)
def test_payloads_are_read_as_the_standard_says(block, found):
    assert payloads(block) == found


@given(st.binary(max_size=80) | lines)
def test_splitting_into_events_loses_no_byte(block):
    events = split_events(block)
    assert b"".join(events) == block
    assert all(len(split_events(event)) == 1 for event in events)


@given(lines, st.sets(st.integers(1, 80)))
def test_the_splitter_releases_whole_events_however_they_are_cut(data, cuts):
    splitter, held = EventSplitter(), b""
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in pairwise(edges):
        held += data[start:end]
        whole = max((held.rfind(mark) + len(mark) for mark in BLANK_LINES if mark in held), default=0)
        assert splitter.feed(data[start:end]) == held[:whole]
        held = held[whole:]
        assert splitter.held == held
    assert splitter.take() == held
    assert splitter.take() == b""


def test_a_long_event_in_many_parts_costs_linear_time():
    event = b"data: " + b"A" * 4 * 2**20 + b"\n\n"
    splitter, began = EventSplitter(), time.process_time()
    blocks = [splitter.feed(event[at : at + 256]) for at in range(0, len(event), 256)]
    assert b"".join(blocks) == event
    assert time.process_time() - began < 5  # searching everything held for each part takes minutes


@pytest.mark.parametrize("line", [b"data:x\n", b"id:1\n"])
def test_an_event_of_many_lines_costs_linear_time(line):
    block, began = line * 1_000_000 + b"\n", time.process_time()
    assert split_events(block) == [block]
    assert len(payloads(block)) == block.startswith(b"data:")
    assert time.process_time() - began < 5  # appending each line to a bytes object takes minutes
