"""The kind of a body by its first bytes."""

from __future__ import annotations

import pytest

from mcpmeter.relay.body_kind import is_blank, json_alone, kind_of


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"data: {}", "events"),
        (b"event: x\n", "events"),
        (b": keep-alive\n", "events"),
        (b"id:1\n", "events"),
        (b"retry: 5\n", "events"),
        (b"\xef\xbb\xbfdata:", "events"),
        (b"\r\n\n data:", "events"),
        (b'{"data:": 1}', "json"),
        (b"\xef\xbb\xbf [", "json"),
        (b"", ""),
        (b"dat", ""),
        (b"<html>", ""),
        (b" " * 600 + b"data:", "events"),
    ],
)
def test_the_first_bytes_decide(start: bytes, kind: str) -> None:
    assert kind_of(start) == kind


@pytest.mark.parametrize(
    ("start", "can_be_any"),
    [
        (b"\n \t", True),
        (b"\xef", True),
        (b"\xef\xbb", True),
        (b"\xef\xbb\xbf\n", True),
        (b"\xef ", False),
        (b"\n:", False),
        (b" " * 512, False),
    ],
)
def test_blanks_can_begin_any_kind(start: bytes, can_be_any: bool) -> None:
    assert is_blank(start) is can_be_any


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n{}",
        b"\xef\xbb\xbf\r\n{}",
        b"{}\n\ndata: [DONE]\n\n",
    ],
)
def test_json_stands_alone(body: bytes) -> None:
    assert json_alone(body) == b"{}"


def test_a_done_inside_json_stays() -> None:
    assert json_alone(b'{"a": " data: [DONE]"}') == b'{"a": " data: [DONE]"}'
