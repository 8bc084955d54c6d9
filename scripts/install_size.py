"""What an installation costs: seconds and megabytes of the whole product and of the library alone.

Builds the wheel, installs it twice into fresh environments and counts what site-packages holds beyond pip (and
setuptools, where the interpreter puts it there). Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
WAYS = {"product": "[server]", "library": ""}
COMPANY_OF_PIP = re.compile(
    r"(pip|setuptools|pkg_resources|_distutils_hack|distutils-precedence)(-[\d.]+\.dist-info|\.pth)?"
)


def main() -> None:
    """Print a line for each way to install, or JSON with `--json`."""
    with tempfile.TemporaryDirectory(prefix="install-size-") as name:
        wheel = _build(Path(name))
        costs = {way: _install(Path(name) / way, f"{wheel}{extra}") for way, extra in WAYS.items()}
    if "--json" in sys.argv[1:]:
        _say(json.dumps(costs))
        return
    for way, cost in costs.items():
        _say(
            f"{way:<8} mcpmeter{WAYS[way]:<9} {cost['seconds']:5.1f} s {cost['megabytes']:7.1f} MB"
            f" {cost['packages']:3.0f} packages"
        )


def _build(folder: Path) -> Path:
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


def _install(environment: Path, requirement: str) -> dict[str, float]:
    """Install into a fresh environment. Seconds are pip's; megabytes are 10^6 bytes of disk blocks."""
    _run(sys.executable, "-m", "venv", environment)
    pip = environment / "bin" / "pip"
    started = time.monotonic()
    _run(pip, "install", "--quiet", requirement, "-c", ROOT / "constraints.txt")
    seconds = time.monotonic() - started
    (site_packages,) = environment.glob("lib/python3*/site-packages")
    mine = [entry for entry in site_packages.iterdir() if not COMPANY_OF_PIP.fullmatch(entry.name)]
    packages = sum(entry.suffix == ".dist-info" for entry in mine)
    return {"seconds": seconds, "megabytes": sum(map(_disk_bytes, mine)) / 1e6, "packages": packages}


def _disk_bytes(entry: Path) -> int:
    files = [entry] if not entry.is_dir() else [Path(top) / f for top, _, names in os.walk(entry) for f in names]
    return sum(file.lstat().st_blocks * 512 for file in files)


def _run(*command: str | Path) -> None:
    # A shell never sees these words; all of them are ours.
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"mcpmeter: {' '.join(map(str, command))} failed:\n{done.stderr.strip()[-1500:]}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
