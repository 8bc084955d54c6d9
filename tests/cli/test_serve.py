"""`mcpmeter serve` as its first user meets it: what it says when it cannot start, and that it starts from nothing."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import urllib.request
from pathlib import Path

import pytest

KEY = {"OPENAI_API_KEY": "sk-not-a-real-key-0123456789"}
LINES_OF_A_SCREEN = 24
PROVIDER = "providers: [{name: openai, api_key: sk-not-a-real-key}]\n"


def refused(finished, *, code: int = 1, says: tuple[str, ...]) -> None:
    """It ended by itself with one screen that names what is wrong and what mends it."""
    assert finished.code == code, finished
    assert finished.stdout == ""
    assert 1 <= len(finished.stderr.splitlines()) <= LINES_OF_A_SCREEN
    assert "Traceback" not in finished.stderr
    assert "Warning" not in finished.stderr
    assert KEY["OPENAI_API_KEY"] not in finished.stderr
    for words in says:
        assert words in finished.stderr, finished.stderr


@pytest.fixture
def serve(run):
    """`mcpmeter serve` on a free port with one provider's key, to its end."""

    def to_the_end(*arguments: object, env: dict[str, str] | None = None, **options: object):
        return run("serve", *arguments, env=KEY if env is None else env, **options)

    return to_the_end


@pytest.fixture
def config(tmp_path: Path):
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "mcpmeter.yaml"
        path.write_text(text)
        return path

    return write


def as_nobody_special() -> list[str]:
    """What goes before a command to run it without an administrator's rights; fails where that cannot be had."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.fail("setpriv is not here; on Debian: apt-get install util-linux")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


class TestListening:
    def test_a_taken_port_is_named_with_alternatives(self, serve):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            refused(serve("--port", port), says=(f"Port {port}", "taken", "ss -ltnp", f"--port {port + 1}"))

    def test_a_taken_metrics_port_is_named_too(self, serve, config, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            path = config(f"server: {{port: 0}}\nmetrics: {{port: {port}}}\n{PROVIDER}")
            finished = serve("--config", path, "--ledger", tmp_path / "ledger.db")
        refused(finished, says=(f"Port {port}", "taken", "metrics.port"))

    def test_a_privileged_port_names_the_allowed_ones(self, serve):
        if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
            pytest.skip("every port is allowed to everyone here")
        refused(serve("--port", 80, through=as_nobody_special()), says=("port 80", "--port 8000"))

    @pytest.mark.parametrize(
        ("host", "says"),
        [
            ("203.0.113.7", "not an address of this machine"),
            ("no-such-host.invalid", "no-such-host.invalid"),
            ("not a host", "not a host"),
        ],
    )
    def test_a_foreign_host_address_is_named(self, serve, config, host, says):
        key = f"keys: [{{name: k, team: t, secret: {secrets.token_hex(32)}}}]\n"
        finished = serve("--config", config(PROVIDER + key), "--host", host, "--port", 0)
        refused(finished, says=(says, "--host"))

    def test_a_public_listener_needs_a_key_hosts_and_a_token(self, serve):
        finished = serve("--host", "0.0.0.0", "--port", 0)
        refused(finished, says=("0.0.0.0", "key", "127.0.0.1", "allowed_hosts: [", "metrics: {public: true}"))

    def test_free_ports_of_further_listeners_are_printed(self, start, config, tmp_path):
        text = f"server: {{port: 0, admin: {{port: 0}}}}\nmetrics: {{port: 0}}\n{PROVIDER}"
        service = start("serve", "--config", config(text), "--ledger", tmp_path / "ledger.db", env=KEY)
        found = service.says(r"Prometheus +http://127\.0\.0\.1:(\d+)/metrics\n +Admin +http://127\.0\.0\.1:(\d+)/")
        assert 0 < int(found[1]) != int(found[2]) > 0


class TestLedger:
    def test_a_ledger_folder_that_cannot_be_created(self, serve, tmp_path):
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "below" / "ledger.db"
        refused(serve("--port", 0, "--ledger", path), says=(str(path.parent), "MCPMETER_LEDGER", "ledger.path"))

    def test_an_unwritable_ledger_folder(self, serve, tmp_path):
        folder = tmp_path / "read-only"
        folder.mkdir(mode=0o555)
        finished = serve("--port", 0, "--ledger", folder / "ledger.db", through=as_nobody_special())
        refused(finished, says=(str(folder), "Permission denied", "chown"))

    def test_a_folder_at_the_ledgers_path(self, serve, tmp_path):
        refused(serve("--port", 0, "--ledger", tmp_path), says=(str(tmp_path), "is a folder", "ledger.db"))

    def test_a_file_that_is_no_ledger_is_not_changed(self, serve, tmp_path):
        path = tmp_path / "ledger.db"
        path.write_text("Dear diary,\n" * 1000)
        refused(serve("--port", 0, "--ledger", path), says=(str(path), "not a ledger", "mv "))
        assert path.read_text().startswith("Dear diary")

    def test_a_ledger_in_use_names_the_process(self, start, serve, tmp_path):
        first = start("serve", "--port", 0, "--ledger", tmp_path / "ledger.db", env=KEY)
        first.says("Ledger")
        finished = serve("--port", 0, "--ledger", tmp_path / "ledger.db")
        refused(finished, says=("in use", f"kill {first.process.pid}"))


class TestConfiguration:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("server: {port: [\n", ("mcpmeter.yaml:",)),
            ("server:\n  prot: 8000\n", ("mcpmeter.yaml:2", "prot", "port")),
            (
                "providers:\n  - {name: openai, api_key: '${NOT_SET_ANYWHERE}'}\n",
                ("mcpmeter.yaml:2", "NOT_SET_ANYWHERE"),
            ),
            ("providers: []\n", ("OPENAI_API_KEY", "mcpmeter demo")),
        ],
        ids=["bad YAML", "unknown key", "variable not set", "no provider"],
    )
    def test_a_fault_names_its_line_and_its_remedy(self, serve, config, text, says):
        refused(serve("--config", config(text), "--port", 0, env={}), says=says)

    def test_a_missing_configuration_file(self, serve, tmp_path):
        refused(serve("--config", tmp_path / "none.yaml"), says=("none.yaml", "--config"))

    def test_without_configuration_the_error_names_the_variables(self, serve):
        refused(serve("--port", 0, env={}), says=("OPENAI_API_KEY", "mcpmeter demo"))


class TestUsage:
    def test_an_unknown_option_names_the_nearest(self, serve):
        refused(serve("--prot", 8000), code=2, says=("--prot", "--port"))

    def test_an_invalid_port(self, serve):
        refused(serve("--port", 70000), code=2, says=("--port", "65535"))


class TestZeroConfiguration:
    PROVIDERS = ("holysheep", "openai", "anthropic", "gemini", "deepseek")

    def test_every_provider_with_a_key_in_the_environment_is_enabled(self, start, tmp_path):
        environments = [{f"{name.upper()}_API_KEY": f"sk-{name}-0123456789abcdef"} for name in self.PROVIDERS]
        everything = {name: key for environment in environments for name, key in environment.items()}
        services = [
            start("serve", "--port", 0, env={**environment, "MCPMETER_LEDGER": str(tmp_path / f"{number}.db")})
            for number, environment in enumerate([*environments, everything])
        ]
        expected = [*self.PROVIDERS, ", ".join(self.PROVIDERS)]
        for service, names in zip(services, expected, strict=True):
            service.says(f"relays to {names}; settings from environment")
            address = service.says(r"OpenAI SDKs +(http://\S+)/v1")[1]
            with urllib.request.urlopen(f"{address}/v1/models", timeout=120) as answer:
                assert json.load(answer)["data"]
        for service in services:
            finished = service.end()
            assert (finished.code, finished.faults) == (0, "")
