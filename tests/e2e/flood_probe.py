"""Asks for a service's health on new connections until its standard input ends; prints the seconds of each as JSON."""

from __future__ import annotations

import json
import select
import socket
import sys
import time

SECONDS_BETWEEN = 0.02
SECONDS_TO_ANSWER = 20.0
REQUEST = b"GET /-/healthy HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def probe(port: int) -> float:
    """Seconds to a whole answer; infinite for none."""
    began = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS_TO_ANSWER) as connection:
            connection.sendall(REQUEST)
            answer = b""
            while part := connection.recv(4096):
                answer += part
    except OSError:
        return float("inf")
    return time.monotonic() - began if answer.startswith(b"HTTP/1.1 200") else float("inf")


def main() -> None:
    seconds = []
    while not select.select([sys.stdin], [], [], SECONDS_BETWEEN)[0]:
        seconds.append(probe(int(sys.argv[1])))
    print(json.dumps([value if value < SECONDS_TO_ANSWER else SECONDS_TO_ANSWER for value in seconds]))


if __name__ == "__main__":
    main()
