"""Responses as bytes: valid, invalid, and cut short."""

from __future__ import annotations

OK = b"HTTP/1.1 200 OK\r\n"


SHORT = OK + b"Content-Length: 5\r\n\r\nhello"


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


PARTS = b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n"


WHOLE: dict[str, tuple[bytes, int, bytes, bool]] = {
    "length": (SHORT, 200, b"hello", True),
    "no body": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", True),
    "chunked": (CHUNKED + PARTS + b"\r\n", 200, b"hello world", True),
    "chunked, no body": (CHUNKED + b"0\r\n\r\n", 200, b"", True),
    "chunked, and blanks": (OK + b"Transfer-Encoding:  Chunked  \r\n\r\n" + PARTS + b"\r\n", 200, b"hello world", True),
    "chunk extensions": (CHUNKED + b'2;a=b;c="d e"\r\nhi\r\n0;z\r\n\r\n', 200, b"hi", True),
    "chunk size in capitals": (CHUNKED + b"00A\r\n0123456789\r\n0\r\n\r\n", 200, b"0123456789", True),
    "trailers": (CHUNKED + PARTS + b"Status: 500\r\nX-A: 1\r\n\r\n", 200, b"hello world", True),
    "close": (OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
    "chunked and close": (
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + PARTS + b"\r\n",
        200,
        b"hello world",
        False,
    ),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
    "HTTP/1.0 that stays": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
        200,
        b"hi",
        True,
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "204 that names a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", 204, b"", True),
    "304 that names a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 300\r\n\r\n", 304, b"", True),
    "100 before it": (b"HTTP/1.1 100 Continue\r\n\r\n" + SHORT, 200, b"hello", True),
    "102 and 103 before it": (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-A: 1\r\n\r\n" + SHORT,
        200,
        b"hello",
        True,
    ),
    "an offer to upgrade": (
        OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nhi",
        200,
        b"hi",
        True,
    ),
    "an error": (b"HTTP/1.1 529 Overloaded\r\nContent-Length: 2\r\n\r\nno", 529, b"no", True),
    "an end of line before it": (b"\r\n" + SHORT, 200, b"hello", True),
}


UNTIL_CLOSED: dict[str, tuple[bytes, bytes]] = {
    "no length": (OK + b"\r\nall of it", b"all of it"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall\r\n\r\nHTTP/1.1", b"all\r\n\r\nHTTP/1.1"),
    "nothing": (OK + b"Connection: close\r\n\r\n", b""),
}


INVALID = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "a status of letters": b"HTTP/1.1 OK OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status of zeros": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "a status below all": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
    "another protocol, unnamed": b"HTTP/1.1 101 Switching\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "a folded header": OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a blank before the colon": OK + b"Content-Length : 2\r\n\r\nhi",
    "a header without a name": OK + b": a\r\nContent-Length: 0\r\n\r\n",
    "NUL in a header": OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "CR in a header": OK + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
    "a control character in a header": OK + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    "a length twice": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nhi",
    "an empty length": OK + b"Content-Length:\r\n\r\nhi",
    "a negative length": OK + b"Content-Length: -2\r\n\r\nhi",
    "a length with a sign": OK + b"Content-Length: +2\r\n\r\nhi",
    "a length in hexadecimal": OK + b"Content-Length: 0x2\r\n\r\nhi",
    "a length beyond 64 bits": OK + b"Content-Length: 18446744073709551617\r\n\r\nhi",
    "length, then chunked": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked, then length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "compressed, then chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked, then compressed": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked and a tab, which the parser reads until the end": OK + b"Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    "nearly chunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "an endless header": OK + b"X-A: " + b"a" * 300_000,
    "an endless header's name": OK + b"a" * 300_000,
    "an endless reason": b"HTTP/1.1 200 " + b"a" * 300_000,
    "endlessly many headers": OK + b"X-A: 1\r\n" * 10_000 + b"\r\n",
    "many headers and a body": OK + b"X-A: 1\r\n" * 20_000 + b"Content-Length: 2\r\n\r\nhi",
    "endless hints": b"HTTP/1.1 103 Early Hints\r\nX-A: 1\r\n\r\n" * 10_000,
    "endless blank lines": b"\r\n" * 100_000,
}


INVALID_BODY = {
    "a chunk without a size": b"zz\r\nhi",
    "a chunk size with a sign": b"+2\r\nhi\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": b"fffffffffffffffff\r\nhi",
    "a chunk longer than it said": b"2\r\nhi!\r\n0\r\n\r\n",
    "a chunk extension ending in LF": b"2;a\nhi\r\n0\r\n\r\n",
    "an endless chunk extension": b"2;" + b"a" * 300_000,
    "endless zeros of a size": b"0" * 300_000,
    "a length in a trailer": b"2\r\nhi\r\n0\r\nContent-Length: 2\r\n\r\n",
    "an endless trailer": b"2\r\nhi\r\n0\r\nX-A: " + b"a" * 300_000,
    "chunk extensions that outweigh their chunks": (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 300,
    "endlessly many trailers": b"2\r\nhi\r\n0\r\n" + b"X-A: 1\r\n" * 40_000,
}


TOO_SHORT = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 2",
    "half a head": OK + b"Content-Type: app",
    "a hint and no answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "less than its length": OK + b"Content-Length: 6\r\n\r\nhello",
    "no body at all": OK + b"Content-Length: 6\r\n\r\n",
    "a length as long as can be": OK + b"Content-Length: 18446744073709551614\r\n\r\nhello",
    "a chunk cut short": CHUNKED + b"5\r\nhel",
    "a chunk as long as can be": CHUNKED + b"fffffffffffffff\r\nhi",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "half a last chunk": CHUNKED + b"5\r\nhello\r\n0\r\n",
    "half a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nX-A: 1\r\n",
}


HALF = OK + b"Content-Length: 10\r\n\r\nhello"
