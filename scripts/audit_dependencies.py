"""Known vulnerabilities of every pin, by pip-audit: exit code 0 without any, 1 with some or if a pin cannot be checked.

pip-audit asks a public service. With `--advisories FOLDER` no network is needed: the folder holds advisories in the OSV
format, for example a checkout of the Python Packaging Advisory Database, and this process answers for it on loopback.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parent.parent
PINS = [ROOT / "constraints.txt", ROOT / "constraints-dev.txt"]


def main() -> None:
    """Exit with pip-audit's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--advisories", type=Path, metavar="FOLDER", help="OSV files to audit against, without network")
    parser.add_argument(
        "pins", nargs="*", type=Path, default=PINS, help="default: constraints.txt, constraints-dev.txt"
    )
    arguments = parser.parse_args()
    if arguments.advisories is None:
        raise SystemExit(_pip_audit(arguments.pins))
    advisories = _read(arguments.advisories)
    if not advisories:
        raise SystemExit(f"mcpmeter: no advisory of a PyPI package is in {arguments.advisories}")
    newest = max(str(advisory.get("modified", "")) for advisory in advisories)
    print(f"mcpmeter: {len(advisories)} advisories, the newest modified {newest}", file=sys.stderr)  # noqa: T201
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(_by_package(advisories))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v1/query"
        code = _pip_audit(arguments.pins, "--vulnerability-service", "osv", "--osv-url", address)
        server.shutdown()
    raise SystemExit(code)


def _pip_audit(pins: list[Path], *options: str) -> int:
    """Strict: a pin that the service does not know is a failure, not a clean result."""
    command = [sys.executable, "-m", "pip_audit", "--strict", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    files = [word for path in pins for word in ("--requirement", str(path))]
    return subprocess.run([*command, *options, *files], check=False).returncode  # noqa: S603


def _read(folder: Path) -> list[dict[str, Any]]:
    """Every advisory for PyPI in the folder. All values stay text: as a YAML float, version 1.10 would be 1.1."""
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in {".json", ".yaml", ".yml"}]
    texts = ((path, path.read_text(encoding="utf-8")) for path in paths)
    found = (json.loads(text) if path.suffix == ".json" else yaml.load(text, loader) for path, text in texts)  # noqa: S506
    return [advisory for advisory in found if isinstance(advisory, dict) and any(_affected(advisory))]


def _affected(advisory: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for part in advisory.get("affected", ()) if part.get("package", {}).get("ecosystem") == "PyPI"]


def _by_package(advisories: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    packages: dict[str, list[dict[str, Any]]] = {}
    for advisory in advisories:
        for name in {canonicalize_name(part["package"]["name"]) for part in _affected(advisory)}:
            packages.setdefault(name, []).append(advisory)
    return packages


def _handler(packages: dict[str, list[dict[str, Any]]]) -> type[BaseHTTPRequestHandler]:
    """OSV's `/v1/query`: the advisories of one package that affect one version."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = canonicalize_name(query["package"]["name"])
            vulns = [advisory for advisory in packages.get(name, ()) if _affects(advisory, name, query["version"])]
            body = json.dumps({"vulns": vulns}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    return Handler


def _affects(advisory: dict[str, Any], name: str, version: str) -> bool:
    parts = [part for part in _affected(advisory) if canonicalize_name(part["package"]["name"]) == name]
    if any(version in part.get("versions", ()) for part in parts):
        return True
    ranges = [r for part in parts for r in part.get("ranges", ()) if r.get("type") == "ECOSYSTEM"]
    return any(_within(r["events"], Version(version)) for r in ranges)


def _within(events: list[dict[str, str]], version: Version) -> bool:
    """OSV's evaluation of a range: the last event up to the version decides. An unreadable bound means affected."""
    try:
        ordered = sorted(
            (Version(text), kind != "introduced", kind) for event in events for kind, text in event.items()
        )
    except InvalidVersion:
        return True
    inside = False
    for bound, _, kind in ordered:
        if kind == "introduced" and version >= bound:
            inside = True
        elif (kind == "fixed" and version >= bound) or (kind == "last_affected" and version > bound):
            inside = False
    return inside


if __name__ == "__main__":
    main()
