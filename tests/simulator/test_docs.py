"""The examples of docs/simulator.md run unchanged."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from mcpmeter.simulator import Fault
from mcpmeter.simulator.plan import PlanText

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
TESTS = [example for example in EXAMPLES if "def test_" in example]
PROGRAMS = [example for example in EXAMPLES if "def test_" not in example]


def run(folder: Path, *command: str) -> str:
    line = [sys.executable, *command]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_examples_that_are_tests_pass_under_pytest(tmp_path):
    for number, example in enumerate(TESTS):
        (tmp_path / f"test_example_{number}.py").write_text(example)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    shown = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "6 passed" in shown


@pytest.mark.parametrize("example", PROGRAMS)
def test_examples_that_are_programs_run(tmp_path, example):
    (tmp_path / "example.py").write_text(example)
    run(tmp_path, "-W", "error", "example.py")


def test_every_setting_of_a_fault_is_on_the_page():
    assert [name for name in Fault.__struct_fields__ if f"`{name}" not in PAGE] == []


def test_the_plan_on_the_page_is_a_plan():
    (plan,) = re.findall(r"/simulator/plan -d '(.*?)'", PAGE)
    assert len(PlanText.decode(plan.encode()).plan().faults) == 2


def test_the_request_on_the_page_requests_a_fault():
    (request,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    assert Fault.parse(msgspec.json.decode(request)["metadata"]["simulate"]).status == 429
