"""`mcpmeter simulate` as a process of its own."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

COMMAND = [sys.executable, "-c", "from mcpmeter.cli import main; main()", "simulate"]


@contextmanager
def running(*options, env=None):
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    try:
        yield process, re.search(r"http://[\d.:]+\d", process.stdout.readline())[0]
    finally:
        process.kill()
        process.communicate(timeout=120)


def failing(*options):
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_and_on_exit_its_totals(number):
    with running("--price", "gpt-4.1=2.50/10.00", "--completion-tokens", "9") as (process, url):
        example = process.stdout.readline() + process.stdout.readline()
        assert f"curl {url}/v1/chat/completions" in example
        body = re.search(r"-d '(.*)'", example)[1].encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body)) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 9
            assert response.headers["X-Cost-USD"] == "0.000105"
        process.send_signal(number)
        rest, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert "Served 1 calls (0 faults, 0 cancelled by the client): 6 prompt and 9 completion tokens." in rest


def test_a_fault_given_on_the_command_line_happens():
    with running("--fault", "status=503,retry_after=2:1") as (_, url):
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        with refused.value as error:
            assert (error.code, error.headers["Retry-After"]) == (503, "2")


def test_the_key_comes_from_the_environment_and_is_never_printed(monkeypatch):
    monkeypatch.setenv("MCPMETER_SIMULATOR_KEY", "sk-hidden")
    with running() as (process, url):
        assert "$MCPMETER_SIMULATOR_KEY" in process.stdout.readline()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/v1/models")
        refused.value.close()
        assert refused.value.code == 401
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=120)
        assert "sk-hidden" not in rest + errors


def test_a_taken_port_is_one_line_and_exit_code_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = failing("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "choose another port with --port" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fault", "status=1"], "is not a fault"),
        (["--fault", "status=503:0.7", "--fault", "status=500:0.7"], "add up to 1.4"),
        (["--latency-ms", "soon"], "is not a distribution"),
        (["--chunks-per-second", "0"], "is not a rate"),
        (["--price", "gpt-4.1=2"], "is no price"),
        (["--price", "gpt-4.1=NaN/1"], "is no price"),
        (["--host", "0.0.0.0"], "MCPMETER_SIMULATOR_KEY"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_1(options, message):
    done = failing(*options)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
