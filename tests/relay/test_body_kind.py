"""The kind of a body by its first bytes."""

from __future__ import annotations

import pytest

from mcpmeter.relay.body_kind import kind_of


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
        (b" " * 600 + b"data:", ""),
    ],
)
def test_the_first_bytes_decide(start: bytes, kind: str) -> None:
    assert kind_of(start) == kind
