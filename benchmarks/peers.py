"""Who is compared: how each peer is started before the same upstream, and what it must prove afterwards."""

from __future__ import annotations

import os
import pwd
import re
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from benchmarks.processes import BenchError, Server

HERE = Path(__file__).parent
OPENAI_PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Launch:
    """The command line of a server, and what it needs in its environment."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """One competitor. `launch` gets (folder, port, upstream's port); None means the upstream itself."""

    name: str
    title: str
    path: str
    launch: Callable[[Path, int, int], Launch] | None
    patience: int = 1
    """How many times longer its bursts are; one of 4 s ends before a slow server has answered its 128 connections."""
    prove_while_running: Callable[[Server, int], None] | None = None
    prove_after: Callable[[Path, int], None] | None = None


def upstream(folder: Path, port: int) -> Launch:
    """nginx that answers every POST with `answer.json`."""
    answer = (HERE / "answer.json").read_text().strip()
    return _nginx(
        folder / "upstream",
        f"server {{ listen 127.0.0.1:{port} backlog=1024; default_type application/json;"
        f" location / {{ return 200 '{answer}'; }} }}",
    )


def _proxy(folder: Path, port: int, upstream_port: int) -> Launch:
    return _nginx(
        folder / "proxy",
        f"upstream model {{ server 127.0.0.1:{upstream_port}; keepalive 256; keepalive_requests 1000000000; }}"
        f" server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ proxy_pass http://model;"
        ' proxy_http_version 1.1; proxy_set_header Connection ""; } }',
    )


def _nginx(folder: Path, http: str) -> Launch:
    folder.mkdir(exist_ok=True)
    # Started by root, nginx would give its worker to a user who may not enter our folder.
    owner = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    temporary = " ".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"{owner} daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; tcp_nodelay on; keepalive_requests 1000000000; {temporary}\n{http} }}\n"
    )
    return Launch(["nginx", "-e", "stderr", "-p", f"{folder}/", "-c", "nginx.conf"])


def _guide(folder: Path, port: int, upstream_port: int) -> Launch:
    uvicorn = [sys.executable, "-m", "uvicorn", "benchmarks.guide_app:app", "--port", str(port), "--no-access-log"]
    return Launch(uvicorn, {"BENCH_UPSTREAM": f"http://127.0.0.1:{upstream_port}/v1", "PYTHONPATH": str(HERE.parent)})


def _relay(folder: Path, port: int, upstream_port: int) -> Launch:
    command = Path(sys.executable).with_name("mcpmeter")
    if not command.exists():
        raise BenchError(f"{command} is not installed. Run: make install")
    config = folder / "mcpmeter.yaml"
    config.write_text(
        f"server: {{port: {port}}}\n"
        f"ledger: {{path: {folder / 'ledger.db'}}}\n"
        "providers:\n"
        "  - name: bench\n"
        "    type: openai\n"
        f"    base_url: http://127.0.0.1:{upstream_port}/v1\n"
        "    api_key: x\n"
        "    models: [gpt-4.1]\n"
    )
    return Launch([str(command), "serve", "--config", str(config)])


def _relay_counted_every_call(server: Server, calls: int) -> None:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    series = re.findall(rf'^mcp_requests_total{{[^}}]*endpoint="{OPENAI_PATH}"[^}}]*}} (\S+)', text, re.MULTILINE)
    counted = int(sum(float(value) for value in series))
    if counted < calls:
        raise BenchError(f"mcp_requests_total says {counted} calls, wrk got {calls} answers")


def _relay_wrote_every_call(folder: Path, calls: int) -> None:
    ledger = apsw.Connection(str(folder / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)
    settled = int(ledger.execute("SELECT count(*) FROM calls WHERE state = 'settled'").get)
    still_open = int(ledger.execute("SELECT count(*) FROM calls WHERE state = 'open'").get)
    ledger.close()
    if settled < calls or still_open:
        raise BenchError(f"the ledger has {settled} settled and {still_open} open rows, wrk got {calls} answers")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("direct", "the upstream itself, no relay", OPENAI_PATH, None),
        Peer("nginx", "nginx proxy_pass, one worker, no metering", OPENAI_PATH, _proxy),
        Peer("guide", "the guide's way: FastAPI, a new httpx client per call", "/mcp/chat", _guide, patience=3),
        Peer(
            "relay",
            "mcpmeter serve, metrics on, ledger FULL on disk",
            OPENAI_PATH,
            _relay,
            prove_while_running=_relay_counted_every_call,
            prove_after=_relay_wrote_every_call,
        ),
    )
}
