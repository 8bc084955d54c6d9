"""The image's recipe: what it copies is enough for a wheel. No Docker runs here, so the build itself is not tried."""

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


def test_a_wheel_can_be_built_from_what_is_copied_and_holds_the_dashboards(tmp_path: Path) -> None:
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


def test_the_build_sees_what_is_copied_and_nothing_else() -> None:
    lines = MADE["Dockerfile.dockerignore"].splitlines()
    assert lines[1] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


def test_it_runs_as_a_number_that_is_not_root_and_installs_what_is_pinned() -> None:
    assert re.search(r"^USER 10001:10001$", MADE["Dockerfile"], re.MULTILINE)
    assert "--constraint constraints.txt" in MADE["Dockerfile"]
    assert MADE["Dockerfile"].index("USER ") < MADE["Dockerfile"].index("ENTRYPOINT")
