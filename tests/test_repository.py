"""The repository's own promises: what a clone, an installation and a newcomer rely on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "mcpmeter"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LIBRARY_MODULES = ("", "errors", "records", "catalog", "metrics", "meter")
"""What works with the base install; a name stands for a module or for all of a package."""

NOT_OURS = {"node_modules", "__pycache__", "build", "dist"}


def requirements() -> dict[str, set[str]]:
    """Canonical name of each direct dependency -> the groups that ask for it."""
    groups = {"base": PROJECT["dependencies"], "build": PYPROJECT["build-system"]["requires"]}
    groups |= PROJECT["optional-dependencies"]
    found: dict[str, set[str]] = {}
    for group, lines in groups.items():
        for name in {canonicalize_name(Requirement(line).name) for line in lines} - {"mcpmeter"}:
            found.setdefault(name, set()).add(group)
    return found


def lines_of_pins() -> list[str]:
    return [
        line for name in ("constraints.txt", "constraints-dev.txt") for line in (ROOT / name).read_text().splitlines()
    ]


def pins() -> dict[str, str]:
    parts = (line.partition("==") for line in lines_of_pins())
    return {canonicalize_name(name): version for name, _, version in parts}


def files_of_the_repository() -> Iterator[Path]:
    """Everything but build products; hidden folders only where they are ours."""
    for top, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in NOT_OURS and (not f.startswith(".") or f in {".ci", ".github"})]
        # In a worktree, .git is a file that says where the repository is.
        yield from (Path(top) / name for name in names if name != ".git")


class TestAddresses:
    # Spelled in pieces, so that this file does not hold what it looks for.
    FORBIDDEN = re.compile(
        "|".join(
            [
                r"pypi\.(org|python\.org)/simple",
                r"files\.python" + "hosted",
                r"registry\.npm" + r"js\.org",
                r"proxy\.golang" + r"\.org",
                r"--(extra-)?index-url[ =]\S*:/" + "/",
                r"(?<![\w.~$-])/(work|root|mnt|(home|Users)/(?!(somebody|you|user)/)\w+)/",
            ]
        )
    )

    def test_no_file_names_a_registry_or_a_folder_of_one_machine(self) -> None:
        found = [
            f"{path.relative_to(ROOT)}: {match[0]}"
            for path in files_of_the_repository()
            for match in self.FORBIDDEN.finditer(path.read_text(errors="replace"))
        ]
        assert found == []

    @pytest.mark.parametrize(
        "text",
        [
            "https://pypi.org" + "/simple/x",
            "https://registry.npm" + "js.org/x",
            "pip install --index-url http:/" + "/mirror x",
            "cd /wo" + "rk/main",
            'open("/ro' + 'ot/x")',
        ],
    )
    def test_what_is_looked_for_is_found(self, text: str) -> None:
        assert self.FORBIDDEN.search(text)


class TestPins:
    def test_every_line_is_one_plain_pin(self) -> None:
        lines = lines_of_pins()
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+]+", line)] == []
        assert len(pins()) == len(lines)

    def test_every_direct_dependency_is_pinned_to_a_version_that_it_allows(self) -> None:
        groups = [PROJECT["dependencies"], PYPROJECT["build-system"]["requires"]]
        groups += PROJECT["optional-dependencies"].values()
        asked = [Requirement(line) for lines in groups for line in lines if not line.startswith("mcpmeter")]
        pinned = pins()
        wrong = [
            str(requirement)
            for requirement in asked
            if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
        ]
        assert wrong == []

    def test_the_versions_of_python_are_those_that_the_pins_were_tried_on(self) -> None:
        assert PROJECT["requires-python"] == ">=3.11"
        assert {"3.11", "3.12", "3.13"} == {
            line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d", line)
        }


def drawn_layers() -> list[list[str]]:
    """The lines of the drawing in docs/architecture.md, siblings together."""
    (drawing,) = re.findall(r"src/mcpmeter/\n(.+?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    layers: list[list[str]] = []
    for sibling, name in re.findall(r"^(\| |  )(\w+(?:/|\.py)) ", drawing, re.MULTILINE):
        if sibling == "| ":
            layers[-1].append(name)
        else:
            layers.append([name])
    return layers


class TestDocuments:
    def test_every_dependency_has_its_line_of_reason_and_no_line_is_left_over(self) -> None:
        rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE)
        assert sorted(canonicalize_name(name) for name, _ in rows) == sorted(requirements())
        assert [name for name, reason in rows if len(reason.split()) < 2] == []

    def test_the_drawn_layout_is_the_package_on_disk(self) -> None:
        drawn = [name for line in drawn_layers() for name in line]
        parts = [p.name + "/" * p.is_dir() for p in PACKAGE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))]
        assert sorted(drawn) == sorted(set(parts) - {"__init__.py"})

    def test_the_drawn_lines_are_the_layers_that_are_checked(self) -> None:
        contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
        checked = [layer.split(" | ") for layer in contract["layers"]]
        assert [[re.sub(r"/|\.py$", "", name) for name in line] for line in drawn_layers()] == checked

    def test_decisions_are_numbered_without_a_gap_and_give_their_reason(self) -> None:
        files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
        assert [f.name[:4] for f in files] == [f"{n:03}-" for n in range(1, len(files) + 1)]
        for file in files:
            text = file.read_text()
            assert text.startswith(f"# {file.name[:3]} ")
            assert "**Decision.**" in text
            assert "**Reason.**" in text

    def test_links_between_documents_lead_somewhere(self) -> None:
        pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        broken = [
            f"{page.relative_to(ROOT)}: {target}"
            for page in pages
            for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
            if not (page.parent / target).exists()
        ]
        assert broken == []


class TestCommands:
    def test_make_alone_lists_every_command_of_the_makefile(self) -> None:
        listed = subprocess.run(["make", "-s", "-C", ROOT], capture_output=True, text=True, check=True).stdout
        (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [name for name in phony.split() if not re.search(rf"^  {name} +\w", listed, re.MULTILINE)] == []

    @pytest.mark.parametrize("script", [".ci/run", "scripts/need.sh", "scripts/make_venv.sh"])
    def test_scripts_may_be_executed(self, script: str) -> None:
        assert os.access(ROOT / script, os.X_OK)

    def test_a_command_that_is_there_is_not_installed(self) -> None:
        done = subprocess.run([ROOT / "scripts" / "need.sh", "sh=no-such-package"], capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def test_a_command_that_cannot_be_installed_fails_with_the_command_that_mends_it(self, tmp_path: Path) -> None:
        for tool in ("bash", "id"):
            (tmp_path / tool).symlink_to(f"/bin/{tool}")
        # A PATH without apt-get: scripts/need.sh adds the sbin folders, where apt-get never is.
        done = subprocess.run(
            [ROOT / "scripts" / "need.sh", "no-such-command=some-package"],
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "apt-get install some-package" in done.stderr

    def test_a_python_that_is_too_old_is_named_with_the_way_out(self, tmp_path: Path) -> None:
        old = tmp_path / "python3"
        old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" || exit 1\n')
        old.chmod(0o755)
        done = subprocess.run(
            [ROOT / "scripts" / "make_venv.sh", old, tmp_path / "venv"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "Python 3.9.2" in done.stderr
        assert "make install PYTHON=" in done.stderr
        assert not (tmp_path / "venv").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    if find_spec("hatchling"):  # then no package index is asked
        build.append("--no-build-isolation")
    done = subprocess.run(build, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("mcpmeter-*.whl")
    return made


class TestWheel:
    def test_it_holds_every_file_of_the_package_and_the_type_marker(self, wheel: Path) -> None:
        held = set(zipfile.ZipFile(wheel).namelist())
        ours = {
            f"mcpmeter/{file.relative_to(PACKAGE).as_posix()}"
            for file in PACKAGE.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert "mcpmeter/py.typed" in held
        assert sorted(ours - held) == []

    def test_it_holds_nothing_but_the_package_and_its_description(self, wheel: Path) -> None:
        tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
        assert tops == {"mcpmeter", f"mcpmeter-{PROJECT['version']}.dist-info"}


def library_modules() -> list[str]:
    """Dotted names of all modules that the base install must be able to import."""
    names = []
    for part in LIBRARY_MODULES:
        path = PACKAGE / part
        files = [*path.rglob("*.py")] if part and path.is_dir() else [path / "__init__.py", path.with_suffix(".py")]
        for file in (f for f in files if f.is_file()):
            names.append(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"))
    return sorted(names)


ONLY_THE_BASE = """
import importlib, importlib.abc, importlib.metadata, sys
allowed = {"mcpmeter", "prometheus_client", "msgspec"}
others = set(importlib.metadata.packages_distributions()) - allowed - set(sys.stdlib_module_names)

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
assert {"mcp", "starlette", "pydantic", "click", "apsw"} <= others
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


class TestLibrary:
    def test_it_imports_with_nothing_but_its_two_packages(self) -> None:
        modules = library_modules()
        assert {"mcpmeter", "mcpmeter.records", "mcpmeter.meter", "mcpmeter.metrics.collector"} <= set(modules)
        done = subprocess.run(
            [sys.executable, "-I", "-c", ONLY_THE_BASE, *modules], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_without_the_server_part_the_command_says_what_to_install(self) -> None:
        script = ONLY_THE_BASE + "from mcpmeter.cli import main\nsys.argv = ['mcpmeter', 'serve']\nmain()\n"
        done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "pip install 'mcpmeter[server]'" in done.stderr


class TestBenchmarkReport:
    @pytest.fixture
    def results(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        monkeypatch.syspath_prepend(ROOT)
        from benchmarks.load import Load
        from benchmarks.peers import PEERS
        from benchmarks.results import Results

        made = []
        for name, calls in (("nginx", 40_000), ("guide", 30), ("relay", 1_500)):
            loads = {
                burst: [Load(burst, calls + n, calls + n, 1.0, 0.9, 200, 900, 200, 900) for n in (-1, 0, 1)]
                for burst in ("json-32", "json-128")
            }
            made.append(Results(PEERS[name], loads, [50_000_000]))
        return made

    def test_ratios_say_which_aim_is_held_and_which_is_missed(self, results: list[object]) -> None:
        from benchmarks import report

        lines = report.ratios(results)
        assert "1/26.7 of nginx's calls per second (aim: at least 1/20 of; MISSED)" in lines[0]
        assert "50 times guide's calls per second (aim: at least 100 times; MISSED)" in lines[2]
        results[2].loads["json-32"] = [SimpleNamespace(calls_per_second=4_000.0, cpu_us_per_call=250.0)]
        assert "1/10 of nginx's calls per second (aim: at least 1/20 of; held)" in report.ratios(results)[0]

    def test_what_is_kept_by_hand_survives_the_next_run(self, results: list[object], tmp_path: Path) -> None:
        from benchmarks import report

        page = tmp_path / "performance.md"
        report.write(page, results, "two cores", rounds=3, seconds=4)
        page.write_text(page.read_text().replace("Nothing written yet.", "Mostly in the client.\n\nThen the disk."))
        report.write(page, results, "four cores", rounds=3, seconds=4)
        text = page.read_text()
        assert "Mostly in the client.\n\nThen the disk." in text
        assert "four cores" in text
        assert "two cores" not in text
