"""`mcpmeter quota` against a server that answers what a test wants."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from mcpmeter.cli._group import run
from mcpmeter.cli.quota import duration
from mcpmeter.quota.tracker import QuotaReport, QuotaStatus

COMMAND = Path(sys.executable).with_name("mcpmeter")
KEY = "mk_a-key-that-must-not-be-printed"
AT = datetime(2026, 11, 22, 11, 0, 0, tzinfo=UTC)


def standing(resource: str, **figures: object) -> QuotaStatus:
    empty = dict.fromkeys(
        ("limit", "remaining", "reset_at", "resets_in_seconds", "burn_per_second", "exhausted_in_seconds")
    )
    return QuotaStatus(
        provider="openai",
        credential="openai-1",
        resource=resource,
        reported_at=AT,
        **{**empty, **figures},  # type: ignore[arg-type]
    )


REPORT = QuotaReport(
    at=AT,
    quotas=[
        standing("requests", limit=10_000, remaining=9_000, resets_in_seconds=200.0, exhausted_in_seconds=30.0),
        standing("tokens", limit=2_000_000, remaining=1_500_000),
        standing("retry_after", resets_in_seconds=0.0),
    ],
)


class Server:
    """Answers every GET with `status`, `body` and `headers`; keeps what it was requests."""

    def __init__(self) -> None:
        self.status = 200
        self.body = msgspec.json.encode(REPORT)
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers["Authorization"]))
                self.send_response(server.status)
                for name, value in {"Content-Length": str(len(server.body)), **server.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("MCPMETER_KEY", raising=False)
    running = Server()
    yield running
    running.close()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_quota(server: Server, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; (exit code, stdout, stderr)."""

    def requests(*arguments: str, url: str = "") -> tuple[int, str, str]:
        code = run(["quota", "--url", url or server.url, *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return requests


class TestTable:
    def test_each_quota_is_a_line_with_its_figures(self, run_quota: Run) -> None:
        code, out, err = run_quota()
        assert (code, err) == (0, "")
        lines = [[cell for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
        rows = [[cell.strip() for cell in line] for line in lines]
        assert rows == [
            ["provider", "credential", "resource", "limit", "remaining", "resets in", "exhausted in"],
            ["openai", "openai-1", "requests", "10,000", "9,000", "3m 20s", "30s"],
            ["openai", "openai-1", "tokens", "2,000,000", "1,500,000", "-", "-"],
            ["openai", "openai-1", "retry_after", "-", "-", "now", "-"],
            ["2026-11-22 11:00:00 UTC"],
        ]

    def test_no_quotas_is_a_sentence_not_an_empty_table(self, run_quota: Run, server: Server) -> None:
        server.body = msgspec.json.encode(QuotaReport(at=AT, quotas=[]))
        code, out, err = run_quota()
        assert (code, out) == (0, "")
        assert "make a call" in err

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (None, "-"), (0.0, "now"), (0.4, "<1s"), (1.0, "1s"), (59.9, "59s"), (60.0, "1m"), (200.0, "3m 20s"),
            (3600.0, "1h"), (3661.0, "1h 1m"), (3605.0, "1h"), (187_200.0, "2d 4h"),
        ],
    )  # fmt: skip
    def test_durations_have_two_units_at_most(self, seconds: float | None, text: str) -> None:
        assert duration(seconds) == text


class TestJson:
    def test_it_is_the_services_response(self, run_quota: Run) -> None:
        code, out, _ = run_quota("--json")
        assert code == 0
        assert msgspec.json.decode(out, type=QuotaReport) == REPORT

    def test_it_is_an_object_even_without_quotas(self, run_quota: Run, server: Server) -> None:
        server.body = msgspec.json.encode(QuotaReport(at=AT, quotas=[]))
        assert json.loads(run_quota("--json")[1])["quotas"] == []


class TestRequests:
    def test_the_key_comes_from_the_option_or_the_environment(
        self, run_quota: Run, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_quota()
        run_quota("--key", KEY)
        monkeypatch.setenv("MCPMETER_KEY", "mk_environment")
        run_quota()
        assert server.requests == [
            ("/api/quota", None),
            ("/api/quota", f"Bearer {KEY}"),
            ("/api/quota", "Bearer mk_environment"),
        ]

    def test_a_path_prefix_is_kept(self, run_quota: Run, server: Server) -> None:
        assert run_quota(url=f"{server.url}/meter/")[0] == 0
        assert server.requests == [("/meter/api/quota", None)]

    def test_no_proxy_of_the_environment_sees_the_key(self, run_quota: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert run_quota("--key", KEY)[0] == 0


class TestFaults:
    def one_line(self, printed: tuple[int, str, str]) -> str:
        code, out, err = printed
        assert (code, out) == (1, "")
        assert err.startswith("mcpmeter: ")
        assert err.count("\n") == 1
        assert KEY not in err
        return err

    def test_a_closed_port_is_reported(self, run_quota: Run) -> None:
        with closing(socket.socket()) as taken:  # bound, so that no other process takes it, but not listening
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            err = self.one_line(run_quota(url=url))
        assert f"No service responds at {url} (Connection refused)" in err
        assert "mcpmeter serve" in err

    def test_an_unknown_host_is_reported(self, run_quota: Run) -> None:
        assert "No service responds" in self.one_line(run_quota(url=f"http://{'a' * 64}.invalid"))

    @pytest.mark.parametrize(
        ("status", "words"),
        [(401, "MCPMETER_KEY"), (403, "allowed_hosts"), (404, "status 404"), (500, "status 500"), (204, "status 204")],
    )
    def test_a_refusal_says_what_to_do(self, run_quota: Run, server: Server, status: int, words: str) -> None:
        server.status = status
        assert words in self.one_line(run_quota("--key", KEY))

    def test_a_redirect_is_not_followed_with_the_key(self, run_quota: Run, server: Server) -> None:
        server.status, server.headers = 302, {"Location": f"{server.url}/elsewhere"}
        assert "status 302" in self.one_line(run_quota("--key", KEY))
        assert [path for path, _ in server.requests] == ["/api/quota"]

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"<html>", b"[]", b"{}", b'{"quotas": []}', b"\xff", b"[" * 100_000,
            msgspec.json.encode(REPORT).replace(b"9000", b"-1"), msgspec.json.encode(REPORT).replace(b"9000", b"9e99"),
            msgspec.json.encode(REPORT).replace(b'"openai"', rb'"\u001b[2J"'),
        ],
        ids=range(10),
    )  # fmt: skip
    def test_an_invalid_report_is_not_shown(self, run_quota: Run, server: Server, body: bytes) -> None:
        server.body = body
        assert "reports no quotas" in self.one_line(run_quota())

    def test_a_peer_without_http_is_reported(self, run_quota: Run) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            peer = threading.Thread(target=_send, args=(listener, b"220 smtp ready\r\n"))
            peer.start()
            printed = run_quota(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
            peer.join()
        assert "reports no quotas" in self.one_line(printed)

    @pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", f"http://u:{KEY}@h", "http://h?key=1"])
    def test_an_invalid_address_is_refused(self, capsys: pytest.CaptureFixture[str], url: str) -> None:
        code = run(["quota", "--url", url])
        assert "--url" in self.one_line((code, *capsys.readouterr()))

    @pytest.mark.parametrize("key", ["mk_é", "mk_\r\nX-Other: 1"])
    def test_a_key_unfit_for_a_header_is_refused(self, run_quota: Run, server: Server, key: str) -> None:
        assert "no header can" in self.one_line(run_quota("--key", key))
        assert server.requests == []


def _send(listener: socket.socket, words: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(words)


class TestWatch:
    def test_json_is_one_line_per_request_until_ctrl_c(self, server: Server, start) -> None:
        watching = start("quota", "--url", server.url, "--watch", "--json", "--every", "0.1")
        watching.says(r"(?s)\n.*\n.*\n")
        done = watching.end(signal.SIGINT)
        assert (done.code, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert len(lines) >= 3
        assert {line["at"] for line in map(json.loads, lines)} == {"2026-11-22T11:00:00Z"}

    def test_a_failing_service_ends_it_with_one_line(self, server: Server, start) -> None:
        watching = start("quota", "--url", server.url, "--watch", "--every", "0.1")
        watching.says("retry_after")
        server.status = 503
        done = watching.end(None)
        assert done.code == 1
        assert done.stderr.count("\n") == 1

    def test_a_terminal_gets_its_cursor_back(self, server: Server) -> None:
        ours, its = pty.openpty()
        arguments = [COMMAND, "quota", "--url", server.url, "--watch", "--every", "0.1"]
        watching = subprocess.Popen(arguments, stdin=its, stdout=its, stderr=its, env={**os.environ, "TERM": "xterm"})
        os.close(its)
        shown = b""
        while len(server.requests) < 3 and (chunk := _read(ours)):
            shown += chunk
        watching.send_signal(signal.SIGINT)
        while chunk := _read(ours):
            shown += chunk
        os.close(ours)
        assert watching.wait(120) == 0
        assert b"retry_after" in shown
        assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux's way to report the end of a terminal
        return b""
