"""Write the product's SBOM: CycloneDX 1.6 as JSON, with license, purl and dependencies of every pin in constraints.txt.

cyclonedx-py describes the whole development environment; what is no pin of the product is removed before the result is
validated. The output has no time and no serial number, so that the same pins give the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
EXTRAS = ("server", "postgres", "parquet", "monitoring")
"""What constraints.txt pins besides the base; the other extras are for development."""


def main() -> None:
    """Write to the path in the first argument."""
    bom = _product_only(_describe_environment(), _pins(), _direct())
    text = json.dumps(bom, indent=2) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"mcpmeter: the SBOM does not fit the CycloneDX schema: {fault}")
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def _direct() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def _describe_environment() -> dict[str, Any]:
    tool = [sys.executable, "-m", "cyclonedx_py", "environment", sys.executable, "--pyproject", ROOT / "pyproject.toml"]
    options = ["--output-reproducible", "--spec-version", "1.6", "--no-validate", "-o", "-"]
    done = subprocess.run([*tool, *options], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"mcpmeter: cyclonedx-py failed:\n{done.stderr.strip()[-1500:]}")
    bom: dict[str, Any] = json.loads(done.stdout)
    return bom


def _product_only(bom: dict[str, Any], pins: dict[str, str], direct: set[str]) -> dict[str, Any]:
    kept = {part["bom-ref"]: part for part in bom["components"] if canonicalize_name(part["name"]) in pins}
    names = {ref: canonicalize_name(part["name"]) for ref, part in kept.items()}
    found = {names[ref]: part["version"] for ref, part in kept.items()}
    if found != pins:
        differences = sorted({name for name, _ in found.items() ^ pins.items()})
        raise SystemExit(f"mcpmeter: the environment differs from constraints.txt: {', '.join(differences)}")
    bom["components"] = list(kept.values())
    edges = {edge["ref"]: [ref for ref in edge.get("dependsOn", ()) if ref in kept] for edge in bom["dependencies"]}
    product = bom["metadata"]["component"]["bom-ref"]
    edges[product] = [ref for ref in edges[product] if names[ref] in direct]
    bom["dependencies"] = [{"ref": ref, "dependsOn": edges[ref]} for ref in [product, *kept]]
    return bom


if __name__ == "__main__":
    main()
