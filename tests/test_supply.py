"""What is installed is what is pinned: constraints, hashes, SBOM, audit of dependencies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OLDEST_PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0"}
IMAGE = ("server", "postgres")
PRODUCT = (*IMAGE, "parquet", "monitoring")


def pins(name: str) -> dict[str, str]:
    parts = (line.partition("==") for line in (ROOT / name).read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in parts}


def hashed(name: str) -> dict[str, str]:
    """The pins of a requirements file; every one has at least one sha256, and nothing else is in the file."""
    text = (ROOT / name).read_text()
    entry = r"(\S+?)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
    assert re.fullmatch(rf"# .+\n(?:{entry})+", text)
    return {canonicalize_name(package): version for package, version, _ in re.findall(entry, text)}


def closure(lines: Iterable[str]) -> set[str]:
    """Names of all distributions that the requirements bring on the oldest Python, by what is installed here."""
    found: set[str] = set()
    due = [(Requirement(line), "") for line in lines]
    while due:
        requirement, extra = due.pop()
        if requirement.marker and not requirement.marker.evaluate({**OLDEST_PYTHON, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        known = {name, *(f"{name}[{e}]" for e in requirement.extras)}
        if known <= found:
            continue
        found |= known
        below = [Requirement(line) for line in distribution(name).requires or ()]
        due += [(needed, e) for needed in below for e in ("", *requirement.extras)]
    return {name for name in found if "[" not in name}


def direct(extras: Iterable[str]) -> list[str]:
    project = PYPROJECT["project"]
    return [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]


class TestPins:
    def test_constraints_hold_the_product_and_nothing_of_its_tools(self) -> None:
        assert set(pins("constraints.txt")) == closure(direct(PRODUCT))

    def test_no_pin_is_in_both_files(self) -> None:
        assert set(pins("constraints.txt")) & set(pins("constraints-dev.txt")) == set()

    def test_the_image_installs_the_pins_of_the_product(self) -> None:
        product = pins("constraints.txt")
        assert hashed("requirements-image.txt") == {name: product[name] for name in closure(direct(IMAGE))}

    def test_the_image_builds_with_the_pins_of_the_backend(self) -> None:
        both = pins("constraints.txt") | pins("constraints-dev.txt")
        backend = PYPROJECT["build-system"]["requires"]
        assert hashed("requirements-build.txt") == {name: both[name] for name in closure(backend)}

    def test_the_build_backend_is_one_exact_version(self) -> None:
        assert PYPROJECT["build-system"]["requires"] == [f"hatchling=={pins('constraints-dev.txt')['hatchling']}"]


def run_script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def sbom(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sbom") / "made" / "mcpmeter.cdx.json"
    done = run_script("sbom.py", path)
    assert done.returncode == 0, done.stderr
    return path.read_text()


@pytest.fixture(scope="module")
def bom(sbom: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(sbom)
    return made


class TestSbom:
    def test_it_lists_exactly_the_pins_of_the_product_by_purl(self, bom: dict[str, Any]) -> None:
        expected = {f"pkg:pypi/{name}@{version}" for name, version in pins("constraints.txt").items()}
        assert {part["purl"] for part in bom["components"]} == expected

    def test_licenses_are_named_where_the_package_declares_one(self, bom: dict[str, Any]) -> None:
        without = [part["name"] for part in bom["components"] if not part.get("licenses")]
        assert without == ["promql-parser"]  # its metadata declares none; the license file in its wheel is MIT

    def test_its_graph_starts_at_the_direct_dependencies_and_is_closed(self, bom: dict[str, Any]) -> None:
        edges = {edge["ref"]: set(edge["dependsOn"]) for edge in bom["dependencies"]}
        names = {part["bom-ref"]: canonicalize_name(part["name"]) for part in bom["components"]}
        assert set(edges) == {"root-component", *names}
        assert {names[ref] for ref in edges["root-component"]} == {
            canonicalize_name(Requirement(line).name) for line in direct(PRODUCT)
        }
        assert set().union(*edges.values()) == set(names)

    def test_it_holds_no_time_no_serial_and_no_folder(self, sbom: str, bom: dict[str, Any]) -> None:
        assert "serialNumber" not in bom
        assert "timestamp" not in bom["metadata"]
        assert str(ROOT) not in sbom
        assert sys.prefix not in sbom


ADVISORY = """\
id: PYSEC-2099-{number}
modified: 2099-01-02T03:04:05Z
affected:
- package: {{name: Package_{number}, ecosystem: {ecosystem}}}
  ranges:
  - type: ECOSYSTEM
    events: [{{introduced: {introduced}}}, {{fixed: 1.10}}, {{introduced: "2.0"}}, {{last_affected: "2.3"}}]
  versions: [0.0.5]
"""


class TestAudit:
    def audit(self, tmp_path: Path, *versions: str, **values: str) -> subprocess.CompletedProcess[str]:
        """Each version is the pin of a package of its own, with an advisory of its own."""
        for number in range(len(versions)):
            advisory = ADVISORY.format(**{"number": number, "ecosystem": "PyPI", "introduced": "1.9", **values})
            (tmp_path / f"PYSEC-2099-{number}.yaml").write_text(advisory)
        lines = [f"package-{number}=={version}\n" for number, version in enumerate(versions)]
        (tmp_path / "pins.txt").write_text("".join(lines))
        return run_script("audit_dependencies.py", "--advisories", tmp_path, tmp_path / "pins.txt")

    def test_affected_pins_fail_and_are_named(self, tmp_path: Path) -> None:
        done = self.audit(tmp_path, "0.0.5", "1.8", "1.9", "1.9.7", "1.10", "2.3", "2.3.1")
        assert done.returncode == 1, done.stderr
        rows = re.findall(r"^package-\d +(\S+) +PYSEC", done.stdout, re.MULTILINE)
        assert sorted(rows) == ["0.0.5", "1.9", "1.9.7", "2.3"]

    def test_pins_outside_the_ranges_pass(self, tmp_path: Path) -> None:
        done = self.audit(tmp_path, "1.8", "1.10")
        assert done.returncode == 0, done.stderr
        assert "2 advisories, the newest modified 2099-01-02" in done.stderr

    def test_a_range_that_cannot_be_read_is_reported(self, tmp_path: Path) -> None:
        assert "PYSEC-2099-0" in self.audit(tmp_path, "1.8", introduced="one-nine").stdout

    def test_a_folder_without_advisories_is_no_clean_result(self, tmp_path: Path) -> None:
        done = self.audit(tmp_path, "1.8", ecosystem="npm")
        assert done.returncode == 1
        assert "no advisory of a PyPI package" in done.stderr
