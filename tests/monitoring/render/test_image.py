"""The Dockerfile copies enough for a wheel. There is no Docker here, so the image build itself is not tested."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from mcpmeter.monitoring import MonitoringOptions
from mcpmeter.monitoring.render import image

ROOT = Path(__file__).parents[3]
MADE = image.render(MonitoringOptions())


def copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", MADE["Dockerfile"], re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_the_copied_files_build_a_wheel_with_the_dashboards(tmp_path: Path) -> None:
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", ".")
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert "mcpmeter/monitoring/dashboards/made/overview.json" in zipfile.ZipFile(wheel).namelist()


def test_the_build_context_contains_only_the_copied_files() -> None:
    lines = MADE["Dockerfile.dockerignore"].splitlines()
    assert lines[1] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


def test_it_runs_as_a_numeric_non_root_user() -> None:
    assert re.search(r"^USER 10001:10001$", MADE["Dockerfile"], re.MULTILINE)
    assert MADE["Dockerfile"].index("USER ") < MADE["Dockerfile"].index("ENTRYPOINT")


def test_pip_fetches_nothing_without_its_hash() -> None:
    commands = re.findall(r"/pip ((?:.|\\\n)+?)(?=&&|\n[A-Z#\n])", MADE["Dockerfile"])
    kinds = [re.search(r"\b(install|wheel|check)\b", command)[1] for command in commands]  # type: ignore[index]
    assert kinds == ["install", "install", "wheel", "install", "check"]
    fetching = [command for command in commands if " install " in f" {command}" and "--no-index" not in command]
    assert [re.findall(r"-r (\S+)", c) for c in fetching] == [["requirements-build.txt"], ["requirements-image.txt"]]
    assert all("--require-hashes --no-deps --only-binary :all:" in command for command in fetching)


def test_both_stages_start_from_the_base_image_that_is_passed() -> None:
    assert re.findall(r"^(?:ARG|FROM) .+$", MADE["Dockerfile"], re.MULTILINE) == [
        "ARG BASE_IMAGE=python:3.13-slim",
        "FROM ${BASE_IMAGE} AS build",
        "FROM ${BASE_IMAGE}",
    ]
