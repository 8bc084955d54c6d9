"""The peers: how each is started in front of the same upstream, and how its records are verified."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from benchmarks.installs import litellm, native, portkey
from benchmarks.load import Route
from benchmarks.processes import BenchError, Server

HERE = Path(__file__).parent
OPENAI_PATH = "/v1/chat/completions"
OPENAI = Route(OPENAI_PATH, OPENAI_PATH)


@dataclass(frozen=True)
class Launch:
    """The command line and environment of a server."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    """Headers that each call needs."""


@dataclass(frozen=True)
class Peer:
    """One compared server. `launch` takes (folder, port, upstream's port); None means the upstream itself.

    A failure of a `foreign` peer is shown in the table; any other failure voids the run.
    """

    name: str
    title: str
    launch: Callable[[Path, int, int], Launch] | None
    route: Route = OPENAI
    install: Callable[[], object] | None = None
    foreign: bool = False
    keeps_a_ledger: bool = False
    rebuilds: bool = False
    """Whether it parses and rebuilds responses: bytes may differ then, text and usage not."""
    check_while_running: Callable[[Server, Route, int], None] | None = None
    check_after: Callable[[Path, int], None] | None = None


def upstream(folder: Path, port: int) -> Launch:
    """`upstream.c`: responds to every POST with `answer.json`, or with a stream of 100 chunks if requested."""
    folder.mkdir(exist_ok=True)
    return Launch([str(native("upstream")), str(port), str(HERE / "answer.json")])


def _apart(folder: Path, port: int, upstream_port: int) -> Launch:
    del upstream_port  # it is itself an upstream
    return upstream(folder, port)


def _proxy(folder: Path, port: int, upstream_port: int) -> Launch:
    return _nginx(
        folder / "proxy",
        f"upstream model {{ server 127.0.0.1:{upstream_port}; keepalive 256; keepalive_requests 1000000000; }}"
        f" server {{ listen 127.0.0.1:{port} backlog=1024;"
        ' proxy_http_version 1.1; proxy_set_header Connection "";'
        " location / { proxy_pass http://model; }"
        " location /streams/ { proxy_pass http://model/; proxy_buffering off; } }",
    )


def _nginx(folder: Path, http: str) -> Launch:
    folder.mkdir(exist_ok=True)
    # Started by root, nginx would run its worker as a user without access to the folder.
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


def _relay(folder: Path, port: int, upstream_port: int, synchronous: str = "full") -> Launch:
    command = Path(sys.executable).with_name("mcpmeter")
    if not command.exists():
        raise BenchError(f"{command} is not installed. Run: make install")
    config = folder / "mcpmeter.yaml"
    config.write_text(
        f"server: {{port: {port}}}\n"
        f"ledger: {{path: {folder / 'ledger.db'}, synchronous: {synchronous}}}\n"
        "providers:\n"
        "  - name: bench\n"
        "    type: openai\n"
        f"    base_url: http://127.0.0.1:{upstream_port}/v1\n"
        "    api_key: x\n"
        "    models: [gpt-4.1]\n"
    )
    return Launch([str(command), "serve", "--config", str(config)])


def _relay_normal(folder: Path, port: int, upstream_port: int) -> Launch:
    return _relay(folder, port, upstream_port, "normal")


def _litellm(folder: Path, port: int, upstream_port: int, callbacks: str = "[]") -> Launch:
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: gpt-4.1\n"
        "    litellm_params:\n"
        "      model: openai/gpt-4.1\n"
        f"      api_base: http://127.0.0.1:{upstream_port}/v1\n"
        "      api_key: x\n"
        f"litellm_settings: {{telemetry: false, callbacks: {callbacks}}}\n"
    )
    argv = [str(litellm()), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # It requires a key, and would fetch its price list from the network at each start.
    key = f"sk-{secrets.token_hex(32)}"
    env = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return Launch(argv, env, (f"Authorization: Bearer {key}",))


def _litellm_metrics(folder: Path, port: int, upstream_port: int) -> Launch:
    return _litellm(folder, port, upstream_port, "[prometheus]")


def _check_litellm_metrics(server: Server, route: Route, calls: int) -> None:
    page = urllib.request.Request(f"{server.url}/metrics/", headers=dict(line.split(": ", 1) for line in route.headers))
    with urllib.request.urlopen(page, timeout=10) as response:
        text = response.read().decode()
    if "litellm_" not in text:
        raise BenchError(f"its /metrics shows none of the {calls} calls")


def _portkey(folder: Path, port: int, upstream_port: int) -> Launch:
    del folder  # it uses no files
    headers = (
        "Authorization: Bearer x",
        "x-portkey-provider: openai",
        f"x-portkey-custom-host: http://127.0.0.1:{upstream_port}/v1",
    )
    return Launch([*portkey(), f"--port={port}", "--headless"], {"NODE_ENV": "production"}, headers)


def _check_relay_metrics(server: Server, route: Route, calls: int) -> None:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        text = response.read().decode()
    series = re.findall(rf'^mcp_requests_total{{[^}}]*endpoint="{route.json_path}"[^}}]*}} (\S+)', text, re.MULTILINE)
    counted = int(sum(float(value) for value in series))
    if counted != calls:
        raise BenchError(f"mcp_requests_total says {counted} calls, the load got {calls} responses")


def _check_relay_ledger(folder: Path, calls: int) -> None:
    ledger = apsw.Connection(str(folder / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)
    settled = "state = 'settled' AND outcome = 'ok' AND token_source = 'reported' AND cost_nanousd > 0"
    billed = int(ledger.execute(f"SELECT count(*) FROM calls WHERE {settled}").get)
    rows = int(ledger.execute("SELECT count(*) FROM calls").get)
    ledger.close()
    if billed != calls or rows != calls:
        raise BenchError(f"the ledger has {rows} rows, {billed} settled and priced, the load got {calls} responses")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("apart", "the upstream itself, on the server's core", _apart),
        Peer("direct", "the upstream itself, on the load's core as for all below", None),
        Peer(
            "nginx", "nginx proxy_pass, one worker, no metering", _proxy, Route(OPENAI_PATH, f"/streams{OPENAI_PATH}")
        ),
        Peer(
            "relay",
            "mcpmeter serve, metrics on, ledger FULL on disk",
            _relay,
            keeps_a_ledger=True,
            check_while_running=_check_relay_metrics,
            check_after=_check_relay_ledger,
        ),
        Peer(
            "relay-normal",
            "mcpmeter serve, ledger NORMAL on disk",
            _relay_normal,
            # No streams: their cost does not depend on the disk.
            Route(OPENAI_PATH, None),
            keeps_a_ledger=True,
            check_while_running=_check_relay_metrics,
            check_after=_check_relay_ledger,
        ),
        Peer("guide", "the guide's design: FastAPI, a new httpx client per call", _guide, Route("/mcp/chat", None)),
        Peer(
            "portkey",
            "Portkey's gateway 1.15.2 on Node, no metering",
            _portkey,
            install=portkey,
            foreign=True,
            rebuilds=True,
        ),
        Peer("litellm", "LiteLLM's proxy 1.106.2", _litellm, install=litellm, foreign=True, rebuilds=True),
        Peer(
            "litellm-metrics",
            "LiteLLM's proxy with its Prometheus callback",
            _litellm_metrics,
            Route(OPENAI_PATH, None),
            install=litellm,
            foreign=True,
            rebuilds=True,
            check_while_running=_check_litellm_metrics,
        ),
    )
}
