"""Hostile and odd requests with the verdict that RFC 9112 asks for: one table per kind, each case as bytes.

A case is sent on a connection of its own, followed by `AFTER`. It is served as the bodies in `bodies`, one for each
request, or refused with a status; `goes_on` is whether `AFTER` is then read as the next request. The test behind
proxies, which forward `/v1/`, puts each case's number for `0000`: lengths stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

HOST: Final = b"Host: a.example\r\n"
GET: Final = b"GET /v1/t-0000 HTTP/1.1\r\n" + HOST
POST: Final = b"POST /v1/t-0000 HTTP/1.1\r\n" + HOST
CHUNKED: Final = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH: Final = b"Content-Length: 5\r\n"
SMUGGLED: Final = b"GET /v1/t-0000/smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n"
AFTER: Final = b"GET /v1/t-0000/after HTTP/1.1\r\nHost: a.example\r\n\r\n"
END: Final = b"\r\n"
HELLO: Final = b"5\r\nhello\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """One connection's bytes and what they are."""

    name: str
    sent: bytes
    bodies: tuple[bytes, ...] = ()
    status: int = 0
    """Of the refusal, 0 without one."""
    goes_on: bool = False


def served(name: str, sent: bytes, *bodies: bytes, goes_on: bool = True) -> Case:
    return Case(name, sent, bodies or (b"",), 0, goes_on)


def refused(name: str, sent: bytes, status: int = 400, *, goes_on: bool = False) -> Case:
    return Case(name, sent, (), status, goes_on)


def content_lengths() -> Iterator[Case]:
    for value in (b"5", b" 5", b"5 ", b"\t5", b"5\t", b"  5 \t ", b"05", b"0000000000000000000000005"):
        yield served(f"length {value!r}", POST + b"Content-Length:" + value + END + END + b"hello", b"hello")
    for value in (
        *(
            b"",
            b" ",
            b"+5",
            b"-5",
            b"-0",
            b"5.0",
            b"5e0",
            b"0x5",
            b"5h",
            b"h5",
            b"5 5",
            b"5,5",
            b"5, 5",
            b"5;5",
            b'"5"',
        ),
        *(b"99999999999999999999", b"18446744073709551616", b"\xb2", b"\xef\xbc\x95", b"5\0", b"\x0b5", b"5\x0c"),
    ):
        yield refused(f"length {value!r}", POST + b"Content-Length:" + value + END + END + b"hello")
    for first, second in (
        (b"5", b"5"),
        (b"5", b"6"),
        (b"0", b"5"),
        (b"5", b"0"),
        (b"5", b""),
        (b"", b"5"),
        (b"5", b"x"),
    ):
        lines = b"Content-Length: %b\r\nX: y\r\ncontent-length: %b\r\n" % (first, second)
        yield refused(f"lengths {first!r} and {second!r}", POST + lines + END + b"hello")
    yield served("no length, no body", POST + END)
    yield served("length 0", POST + b"Content-Length: 0\r\n\r\n")
    yield served("a body behind GET", GET + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, SMUGGLED)
    yield served("a body without a length", POST + END + b"hello\r\n\r\n", goes_on=False)
    for name in (b"Content_Length", b"ContentLength", b"X-Content-Length", b"Content-Lengt"):
        yield served(f"{name.decode()} is no length", POST + name + b": 5\r\n\r\n")


def transfer_encodings() -> Iterator[Case]:
    te = b"Transfer-Encoding:"
    for value in (b"chunked", b" chunked", b"\tchunked", b"chunked ", b"Chunked", b"CHUNKED", b"  cHUNKED  "):
        yield served(f"coding {value!r}", POST + te + value + END + END + HELLO, b"hello")
    for value in (
        *(b"identity", b"gzip", b"deflate", b"compress", b"br", b"x", b"xchunked", b"chunkedx", b"chunked-", b"chunk"),
        *(b"chunked, chunked", b"chunked,chunked", b"gzip, chunked", b"chunked, gzip", b"identity, chunked"),
        *(b"chunked, identity", b", chunked", b"chunked,", b"chunked;q=1", b"chunked; a=b", b'"chunked"', b"'chunked'"),
        *(b"chunked\t", b"chun\tked", b"chu nked", b"\xc4\xb7hunked", b"chunked\xa0", b"*"),
    ):
        yield refused(f"coding {value!r}", POST + te + b" " + value + END + END + HELLO, 501)
    for value in (
        b"",
        b" ",
        b"\0chunked",
        b"chunked\0",
        b"\x0bchunked",
        b"chunked\x0c",
        b"\r\n chunked",
        b"chunked\r\n\t",
    ):
        yield refused(f"coding {value!r}", POST + te + value + END + END + HELLO)
    for line in (b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b" Transfer-Encoding: chunked"):
        yield refused(f"line {line!r}", POST + line + END + END + HELLO)
    for first in (b"chunked", b"identity", b"gzip", b"x"):
        for second in (b"chunked", b"identity", b"x"):
            lines = b"Transfer-Encoding: %b\r\ntransfer-encoding: %b\r\n" % (first, second)
            yield refused(f"codings {first!r} and {second!r}", POST + lines + END + HELLO, 501)
    for version in (b"1.0",):
        head = POST.replace(b"1.1", version)
        for value in (b"chunked", b"identity", b"gzip, chunked"):
            yield refused(f"coding {value!r} in {version!r}", head + b"Transfer-Encoding: %b\r\n\r\n" % value + HELLO)
    for name in (b"Transfer_Encoding", b"TransferEncoding", b"X-Transfer-Encoding", b"Transfer-Encodin"):
        yield served(f"{name.decode()} is no coding", POST + name + b": chunked\r\n\r\n")


def both_framings() -> Iterator[Case]:
    """CL.TE and TE.CL: each of the two alone would leave a request in the other's body."""
    inside = b"0\r\n\r\n" + SMUGGLED
    for coding in (b"chunked", b"Chunked", b"chunked ", b" chunked", b"identity", b"xchunked", b"chunked, identity"):
        for length in (0, 4, len(inside)):
            lines = (b"Content-Length: %d\r\n" % length, b"Transfer-Encoding: %b\r\n" % coding)
            yield refused(f"length {length}, then {coding!r}", POST + b"".join(lines) + END + inside)
            status = (
                501 if coding == b"chunked, identity" else 400
            )  # httptools refuses the line before it sees the length
            yield refused(f"{coding!r}, then length {length}", POST + b"".join(reversed(lines)) + END + inside, status)
    for lines in (
        b"Content-Length: 5\r\nTransfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length : 5\r\n",
        b"Content-Length: 5\r\n Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n",
        b"X: y\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"X: y\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\nTransfer-Encoding: chunked\r\n",
    ):
        yield refused(f"both {lines!r}", POST + lines + END + inside)


def chunk_sizes() -> Iterator[Case]:
    for size in (b"05", b"00000000000000005"):
        yield served(f"chunk size {size!r}", CHUNKED + size + b"\r\nhello\r\n0\r\n\r\n", b"hello")
    for size in (b"a", b"A", b"0a"):
        yield served(f"chunk size {size!r}", CHUNKED + size + b"\r\n0123456789\r\n0\r\n\r\n", b"0123456789")
    for size in (
        *(
            b"",
            b" 5",
            b"5 ",
            b"\t5",
            b"5\t",
            b"+5",
            b"-5",
            b"0x5",
            b"0X5",
            b"5h",
            b"x",
            b"5,",
            b"5.0",
            b"5_",
            b"_5",
            b"5\0",
        ),
        *(b"10000000000000005", b"fffffffffffffffff", b"\xb2", b"5\x0b", b"5 5", b"#5", b"5#", b'"5"', b"(5)"),
    ):
        yield refused(f"chunk size {size!r}", CHUNKED + size + b"\r\nhello\r\n0\r\n\r\n")
    for zero in (b"00", b"0000000000000000000"):
        yield served(f"last chunk {zero!r}", CHUNKED + b"5\r\nhello\r\n" + zero + b"\r\n\r\n", b"hello")
    yield refused("a chunk longer than its size", CHUNKED + b"3\r\nhello\r\n0\r\n\r\n")
    yield refused("a chunk shorter than its size", CHUNKED + b"7\r\nhello\r\n0\r\n\r\n")
    yield served("many chunks", CHUNKED + b"1\r\na\r\n" * 50 + b"0\r\n\r\n", b"a" * 50)
    inner = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    yield served("a request in a chunk", CHUNKED + inner, SMUGGLED)


def chunk_extensions() -> Iterator[Case]:
    for extension in (b";a", b";a=b", b";a=b;c=d", b';a="b"', b';a="b;c"', b';a="b c"', b";a=1", b";" + b"a" * 200):
        yield served(f"extension {extension[:9]!r}", CHUNKED + b"5" + extension + b"\r\nhello\r\n0\r\n\r\n", b"hello")
    yield served("an extension of the last chunk", CHUNKED + b"5\r\nhello\r\n0;a=b\r\n\r\n", b"hello")
    for extension in (
        *(b";a\nb", b";a\rb", b";\n", b";\r", b";a=\n", b';a="\r\n"', b';a="b\n"', b";a\0", b";a=\0", b';a="\0"'),
        *(b' "a"', b" a", b"a=b", b";\xff", b";a=b\x7f", b";\x01"),
    ):
        yield refused(f"extension {extension!r}", CHUNKED + b"5" + extension + b"\r\nhello\r\n0\r\n\r\n")
    hidden = b"\n0\r\n\r\n" + SMUGGLED
    yield refused("a request behind a bare LF in an extension", CHUNKED + b"5;a" + hidden + b"\r\nhello\r\n0\r\n\r\n")


def chunk_line_ends() -> Iterator[Case]:
    pieces = (b"5", b"hello", b"0", b"X: y", b"")
    for place in range(len(pieces)):
        for line_end in (
            b"\n",
            b"\r",
            b"\n\r",
            b"\r\r\n",
            b"\n\n",
            b" \r\n" if place in (0, 2) else b"\r \n",
            b"\0\r\n",
        ):
            ends = [END] * len(pieces)
            ends[place] = line_end
            body = b"".join(piece + end for piece, end in zip(pieces, ends, strict=True))
            yield refused(f"line end {line_end!r} after {pieces[place]!r}", CHUNKED + body)
    yield refused("an empty line between chunks", CHUNKED + b"5\r\nhello\r\n\r\n0\r\n\r\n")


def trailers() -> Iterator[Case]:
    for trailer in (
        *(
            b"X: y\r\n",
            b"X:\r\n",
            b"X: y\r\nX: z\r\n",
            b"Host: b.example\r\n",
            b"Connection: x\r\n",
            b"Trailer: x\r\n",
        ),
        *(b"Authorization: Bearer x\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Expect: 100-continue\r\n"),
    ):
        yield served(f"trailer {trailer!r}", CHUNKED + b"5\r\nhello\r\n0\r\n" + trailer + END, b"hello")
    for trailer in (
        *(
            b"Content-Length: 9\r\n",
            b"Content-Length: x\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
        ),
        *(
            b"X\r\n",
            b"X y\r\n",
            b": y\r\n",
            b"X : y\r\n",
            b" X: y\r\n",
            b"X: y\r\n z\r\n",
            b"X: \0y\r\n",
            b"X\0: y\r\n",
        ),
        *(b"X: \x01\r\n", b"\xff: y\r\n", b"GET /v1/t-0000/smuggled HTTP/1.1\r\n"),
    ):
        status = 501 if trailer.startswith(b"Transfer") else 400
        yield refused(f"trailer {trailer!r}", CHUNKED + b"5\r\nhello\r\n0\r\n" + trailer + END, status)
    yield refused("endless trailers", CHUNKED + b"0\r\n" + b"X: y\r\n" * 20_000 + END, 431)


def line_ends() -> Iterator[Case]:
    pieces = (b"POST /v1/t-0000 HTTP/1.1", b"Host: a.example", b"X: y", b"Content-Length: 5", b"")
    for place in range(len(pieces)):
        for line_end in (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\n\r\n"):
            ends = [END] * len(pieces)
            ends[place] = line_end
            head = b"".join(piece + end for piece, end in zip(pieces, ends, strict=True))
            yield refused(f"line end {line_end!r} after {pieces[place]!r}", head + b"hello")
    for before in (b"\r\n", b"\r\n\r\n"):
        yield served(f"{before!r} before a request", before + GET + END)
    for before in (b" ", b"\t", b"\0", b"\x0b", b"\xef\xbb\xbf", b" \r\n", b"X: y\r\n"):
        yield refused(f"{before!r} before a request", before + GET + END)


def folded_lines() -> Iterator[Case]:
    for blank in (b" ", b"\t"):
        for lines in (
            b"X: y\r\n" + blank + b"z\r\n",
            b"X:\r\n" + blank + b"z\r\n",
            b"X: y\r\n" + blank + b"\r\n",
            b"X: y\r\n" + blank + b"Content-Length: 5\r\n",
            b"X: y\r\n" + blank + b"Transfer-Encoding: chunked\r\n",
        ):
            yield refused(f"folded {lines!r}", POST + lines + END + b"hello")
        yield refused(f"{blank!r} before the first line", POST.replace(b"Host", blank + b"Host") + END)


def names() -> Iterator[Case]:
    for character in b"!#$%&'*+-.^_`|~09":
        yield served(f"{character:c} in a name", GET + b"X%c: y\r\n\r\n" % character)
    for character in b' \t\0\x01\x0b\x1f\x7f\x80\xff()<>@,;\\"/[]?={}':
        yield refused(f"{bytes([character])!r} in a name", GET + b"X%c: y\r\n\r\n" % character)
    for line in (b"X", b": y", b" : y", b"X y", b"\r"):
        yield refused(f"line {line!r}", GET + line + b"\r\n\r\n")


def values() -> Iterator[Case]:
    for character in (*range(9), *range(11, 13), *range(14, 32), 127):
        yield refused(f"{bytes([character])!r} in a value", GET + b"X: a%cb\r\n\r\n" % character)
    for value in (b"", b" ", b"\t", b"a\tb", b"a  b", b"\x80", b"\xff", b'"', b"a:b", b"a\\", b"%0d%0aY: z"):
        yield served(f"value {value!r}", GET + b"X:" + value + b"\r\n\r\n")


def hosts() -> Iterator[Case]:
    for host in (
        *(b"a.example", b"a.example:80", b"a.example:", b"127.0.0.1", b"127.0.0.1:8000", b"[::1]", b"[::1]:80"),
        *(b"a_b", b"A.EXAMPLE", b"a-b.example.", b" a.example ", b"\ta.example\t", b"xn--bcher-kva.example"),
    ):
        yield served(f"host {host!r}", b"GET /v1/t-0000 HTTP/1.1\r\nHost:" + host + b"\r\n\r\n")
    for host in (
        *(b"", b" ", b"a b", b"a,b", b"a, b", b"a/b", b"a?b", b"a#b", b"a@b", b"user@a.example", b"http://a.example"),
        *(b"a:80:80", b"a:x", b"a:-1", b"a:999999", b"[::1", b"::1", b"[a.example]", b"a\\b", b"<a>", b'"a"', b"a\xff"),
        *(b"a\0", b"a\tb", b"\xe4.example", b":80", b"[]", b"a;b", b"a|b", b"a{b}", b"a^b", b"a`b"),
    ):
        yield refused(f"host {host!r}", b"GET /v1/t-0000 HTTP/1.1\r\nHost:" + host + b"\r\n\r\n")
    yield refused("no host", b"GET /v1/t-0000 HTTP/1.1\r\n\r\n")
    yield refused("no host, others", b"GET /v1/t-0000 HTTP/1.1\r\nX-Host: a\r\nX-Forwarded-Host: a\r\n\r\n")
    yield served("HTTP/1.0 without a host", b"GET /v1/t-0000 HTTP/1.0\r\n\r\n", goes_on=False)
    for second in (b"a.example", b"b.example", b"", b"A.example"):
        yield refused(f"a second host {second!r}", GET + b"X: y\r\nhost: " + second + b"\r\n\r\n")
        yield refused(
            f"a second host {second!r} in 1.0", GET.replace(b"1.1", b"1.0") + b"Host: " + second + b"\r\n\r\n"
        )
    for line in (b"Host : a", b" Host: a", b"Host\t: a", b"Host\0: a"):
        yield refused(f"line {line!r}", b"GET /v1/t-0000 HTTP/1.1\r\n" + line + b"\r\n\r\n")


def targets() -> Iterator[Case]:
    def get(target: bytes) -> bytes:
        return b"GET " + target + b" HTTP/1.1\r\n" + HOST + END

    for target in (
        *(
            b"/v1/t-0000?a=b",
            b"/v1/t-0000?",
            b"/v1/t-0000?a?b",
            b"/v1/t-0000%20x",
            b"/v1/t-0000%2Fx",
            b"/v1/t-0000/%2e%2e/t",
            b"/v1/t-0000/../t",
            b"/v1/t-0000//x",
        ),
        *(
            b"http://a.example/v1/t-0000",
            b"HTTP://A.EXAMPLE/v1/t-0000?x",
            b"https://a.example/v1/t-0000",
            b"/v1/t-0000%00",
            b"/v1/t-0000;a=b",
            b"//v1/t-0000",
        ),
    ):
        yield served(f"target {target!r}", get(target))
    for target in (
        *(
            b"",
            b"v1/t",
            b"?/v1/t-0000",
            b"#",
            b"/v1/t-0000#x",
            b"/v1/t-0000?x#y",
            b"/v1/t-0000 x",
            b"/v1/\xff",
            b"/v1/\0",
            b"/v1/t-0000\x01",
            b"/v1/\x7f",
        ),
        *(
            b"http://b.example/v1/t-0000",
            b"http://user@a.example/v1/t-0000",
            b"http://a.example:81/v1/t-0000",
            b"ftp://a.example/v1/t-0000",
            b"http:///v1/t-0000",
            b"http://",
        ),
        *(b"/v1/t-0000\tx", b"a.example:80", b"http:/v1/t-0000"),
    ):
        yield refused(f"target {target!r}", get(target))
    yield served("OPTIONS *", b"OPTIONS * HTTP/1.1\r\n" + HOST + END)
    yield refused("CONNECT", b"CONNECT a.example:80 HTTP/1.1\r\n" + HOST + END)


def request_lines() -> Iterator[Case]:
    def get(line: bytes) -> bytes:
        return line + END + HOST + END

    for version in (
        *(b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/2", b"HTTP/3.0", b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/11"),
        *(
            b"HTTP/1.10",
            b"HTTP/01.1",
            b"HTTP/1.1x",
            b"HTTP/1,1",
            b"http/1.1",
            b"Http/1.1",
            b"HTTPS/1.1",
            b"ICE/1.0",
            b"X/1.1",
        ),
        *(
            b"HTTP /1.1",
            b"HTTP/ 1.1",
            b"HTTP/1 .1",
            b"HTTP/1.1 ",
            b"HTTP/1.1\t",
            b"HTTP/1.1 x",
            b"HTTP/1.\xb9",
            b"1.1",
            b"",
        ),
    ):
        yield refused(f"version {version!r}", get(b"GET /v1/t-0000 " + version))
    yield refused("HTTP/0.9 without a version", b"GET /v1/t-0000\r\n\r\n")
    yield served("HTTP/1.0", get(b"GET /v1/t-0000 HTTP/1.0"), goes_on=False)
    for line in (
        *(
            b"GET\t/v1/t-0000 HTTP/1.1",
            b"GET /v1/t-0000\tHTTP/1.1",
            b"GET\x0b/v1/t-0000 HTTP/1.1",
            b"GET /v1/t-0000 /x HTTP/1.1",
            b"GET",
        ),
        *(
            b"GET ",
            b"GET/v1/t-0000 HTTP/1.1",
            b"/v1/t-0000 HTTP/1.1",
            b"GET /v1/t-0000HTTP/1.1",
            b"GET: /v1/t-0000 HTTP/1.1",
        ),
        *(
            b"get /v1/t-0000 HTTP/1.1",
            b"Get /v1/t-0000 HTTP/1.1",
            b"FROB /v1/t-0000 HTTP/1.1",
            b"GE\0T /v1/t-0000 HTTP/1.1",
            b"G\xc9T /v1/t-0000 HTTP/1.1",
        ),
    ):
        yield refused(f"line {line!r}", get(line))
    for method in (b"GET", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"):
        head = method + b" /v1/t-0000 HTTP/1.1\r\n" + HOST
        yield served(f"{method.decode()} with a body", head + LENGTH + END + b"hello", b"hello")
    yield refused("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    yield refused("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64)
    yield refused("a proxy's PROXY line", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + GET + END)


def upgrades() -> Iterator[Case]:
    framed = (
        ("a length", b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, SMUGGLED),
        ("chunks", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED), SMUGGLED),
        ("no body", END, b""),
    )
    for protocol in (b"h2c", b"websocket", b"HTTP/2.0", b"foo, h2c", b""):
        for connection in (b"Upgrade", b"upgrade, HTTP2-Settings", b"keep-alive, Upgrade"):
            for name, rest, body in framed:
                lines = b"Connection: %b\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n" % (connection, protocol)
                yield served(f"{protocol!r} by {connection!r} with {name}", POST + lines + rest, body)
    lines = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    yield refused("an upgrade with two lengths", POST + lines + LENGTH + LENGTH + END + b"hello")
    yield refused(
        "an upgrade with both framings", POST + lines + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + HELLO
    )
    yield refused("an upgrade with another coding", POST + lines + b"Transfer-Encoding: gzip\r\n\r\n" + HELLO, 501)
    yield refused("an upgrade without a host", b"GET /v1/t-0000 HTTP/1.1\r\n" + lines + END)


def sequences() -> Iterator[Case]:
    one, two = POST + LENGTH + END + b"first", CHUNKED + HELLO
    yield served("two pipelined", one + two, b"first", b"hello")
    yield served("three pipelined", one + GET + END + two, b"first", b"", b"hello")
    yield served("an empty line between", one + END + two, b"first", b"hello")
    yield served("junk behind a request", one + b"junk\r\n\r\n", b"first", goes_on=False)
    yield served("a body longer than its length", one + b"x" + two, b"first", goes_on=False)
    yield served(
        "close, then more", POST + b"Connection: close\r\n" + LENGTH + END + b"hello" + two, b"hello", goes_on=False
    )
    yield served("100-continue", POST + b"Expect: 100-continue\r\n" + LENGTH + END + b"hello", b"hello")
    yield served("another expectation", POST + b"Expect: x\r\n" + LENGTH + END + b"hello", b"hello")
    yield served("keep-alive in 1.0", GET.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n\r\n", goes_on=False)
    for name in (
        b"Connection",
        b"Keep-Alive",
        b"TE",
        b"Trailer",
        b"Proxy-Connection",
        b"X-Forwarded-For",
        b"Forwarded",
    ):
        yield served(f"{name.decode()} twice", GET + (name + b": x\r\n") * 2 + END)
    for value in (b"Content-Length", b"Transfer-Encoding", b"Host", b"Authorization, X-Request-Id"):
        yield served(
            f"Connection: {value.decode()}", POST + b"Connection: " + value + END + LENGTH + END + b"hello", b"hello"
        )
    for name in (b"Authorization", b"x-api-key", b"Content-Type", b"Origin", b"Mcp-Session-Id", b"Idempotency-Key"):
        yield refused(f"{name.decode()} twice", GET + name + b": a\r\n" + name.lower() + b": b\r\n\r\n", goes_on=True)
    yield refused("headers over the bound", GET + b"X: " + b"y" * 70_000 + b"\r\n\r\n", 431)
    yield refused("a target over the bound", b"GET /v1/t-0000?" + b"y" * 70_000 + b" HTTP/1.1\r\n" + HOST + END, 431)


def corpus() -> list[Case]:
    """All cases."""
    kinds = (
        *(content_lengths, transfer_encodings, both_framings, chunk_sizes, chunk_extensions, chunk_line_ends, trailers),
        *(line_ends, folded_lines, names, values, hosts, targets, request_lines, upgrades, sequences),
    )
    return [case for kind in kinds for case in kind()]
