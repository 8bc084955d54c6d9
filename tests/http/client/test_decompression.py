"""A compressed body is read whole or refused, and never exceeds the limit in memory."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import InvalidUpstreamResponse, MeterError, UpstreamDisconnected, UpstreamResponseTooLarge
from mcpmeter.http.client.decompression import InflateResponse
from mcpmeter.http.inflate import PIECE_BYTES

MEGABYTE = 1024 * 1024
PLAIN = b'{"usage":{"prompt_tokens":3}}' * 50


def inflated(parts: list[bytes], limit_bytes: int = MEGABYTE) -> bytes:
    inflate = InflateResponse.for_encoding("gzip", "acme", limit_bytes)
    assert inflate is not None
    plain = b"".join([piece for part in parts for piece in inflate.feed(part)])
    inflate.finish()
    return plain


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_identity_needs_no_decompression(encoding):
    assert InflateResponse.for_encoding(encoding, "acme", 1) is None


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "identity, gzip", "*"])
def test_an_unknown_encoding_is_refused(encoding):
    with pytest.raises(InvalidUpstreamResponse, match=r"^acme "):
        InflateResponse.for_encoding(encoding, "acme", 1)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", " GZIP "])
@pytest.mark.parametrize("packed", [gzip.compress(PLAIN), zlib.compress(PLAIN)], ids=["gzip", "zlib"])
def test_the_first_bytes_decide_between_gzip_and_zlib(encoding, packed):
    inflate = InflateResponse.for_encoding(encoding, "acme", MEGABYTE)
    assert inflate is not None
    assert b"".join(inflate.feed(packed)) == PLAIN
    inflate.finish()


@given(
    plains=st.lists(st.binary(max_size=200).map(lambda some: some * 700), min_size=1, max_size=4),
    places=st.lists(st.integers(0, 1 << 20), max_size=12),
)
def test_members_cut_anywhere_give_all_bytes(plains, places):
    packed = b"".join(gzip.compress(plain) for plain in plains)
    assert inflated(cut(packed, places)) == b"".join(plains)


def test_a_body_cut_short_is_a_disconnect():
    packed = gzip.compress(b"one") + gzip.compress(b"two")
    whole = {0: b"", len(gzip.compress(b"one")): b"one", len(packed): b"onetwo"}
    for size in range(len(packed) + 1):
        if size in whole:
            assert inflated([packed[:size]]) == whole[size]
        else:
            with pytest.raises(UpstreamDisconnected, match=r"^acme "):
                inflated([packed[:size]])


@pytest.mark.parametrize("rest", [b"\0\0", b"\0" * 512, b"trailing", b"\x1f\x9d", PLAIN, zlib.compress(PLAIN)])
@pytest.mark.parametrize("packed", [gzip.compress(PLAIN), zlib.compress(PLAIN)], ids=["gzip", "zlib"])
def test_junk_behind_the_last_member_is_refused(packed, rest):
    for parts in ([packed + rest], [packed, rest]):
        with pytest.raises(InvalidUpstreamResponse, match="cannot be decompressed"):
            inflated(parts)


def test_a_wrong_checksum_is_refused():
    packed = bytearray(gzip.compress(PLAIN))
    packed[-6] ^= 1
    with pytest.raises(InvalidUpstreamResponse):
        inflated([bytes(packed)])


@given(parts=st.lists(st.binary(max_size=64) | st.just(gzip.compress(b"hi")), max_size=8))
def test_random_bytes_decompress_or_raise_our_errors(parts):
    try:
        plain = inflated(parts)
    except MeterError:
        return
    assert plain == gzip.decompress(b"".join(parts))


def test_the_limit_counts_plain_bytes_of_all_members():
    packed = gzip.compress(b"x" * 600) + gzip.compress(b"y" * 400)
    assert len(inflated([packed], 1000)) == 1000
    for parts in ([packed], [packed[:20], packed[20:]]):
        with pytest.raises(UpstreamResponseTooLarge, match="999 bytes"):
            inflated(parts, 999)


def test_a_bomb_stays_below_one_piece_in_memory():
    bomb = gzip.compress(b"\0" * 64 * MEGABYTE)
    inflate = InflateResponse.for_encoding("gzip", "acme", 32 * MEGABYTE)
    assert inflate is not None
    sizes: list[int] = []
    tracemalloc.start()
    try:
        with pytest.raises(UpstreamResponseTooLarge):
            sizes.extend(map(len, inflate.feed(bomb)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(sizes) == PIECE_BYTES
    assert 0 <= 32 * MEGABYTE - sum(sizes) < PIECE_BYTES
    assert peak_bytes < MEGABYTE


def test_many_empty_members_are_an_empty_body():
    assert inflated([gzip.compress(b"") * 20_000]) == b""
