"""The command group: every error is one line with an exit code and what to do next."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import pytest

from mcpmeter import cli
from mcpmeter.cli._group import group, run
from mcpmeter.cli._reference import cli_reference
from mcpmeter.errors import ConfigInvalid, LedgerNotUsable, MeterError, MissingDependency, PortTaken, SetupError

COMMAND = Path(sys.executable).with_name("mcpmeter")
DOCS = Path(__file__).parents[2] / "docs"
ROOT = click.Context(group, info_name="mcpmeter", **group.context_settings)
COMMANDS = group.list_commands(ROOT)

Give = Callable[[Callable[[], object]], None]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Make `mcpmeter check` do something else."""

    def replace(what: Callable[[], object]) -> None:
        monkeypatch.setattr("mcpmeter.cli.check.command", click.Command("check", callback=what))

    return replace


def raising(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


class TestUsage:
    @pytest.mark.parametrize(("typed", "meant"), [("srve", "serve"), ("modles", "models"), ("chekc", "check")])
    def test_an_unknown_command_names_the_nearest_one(
        self, capsys: pytest.CaptureFixture[str], typed: str, meant: str
    ) -> None:
        assert run([typed]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.endswith(f"Error: No such command '{typed}'. Did you mean '{meant}'?\n")

    def test_a_command_without_a_nearest_one_names_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["xyzzy"]) == 2
        assert capsys.readouterr().err.endswith(f"Commands: {', '.join(COMMANDS)}.\n")

    @pytest.mark.parametrize("arguments", [["--nope"], ["check", "--jsno"], ["check", "extra"], ["cost", "compar"], []])
    def test_wrong_usage_is_code_2(self, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
        assert run(arguments) == 2
        assert "Usage: mcpmeter" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["-h", "--help", "--version"])
    def test_help_and_version_exit_with_0(self, capsys: pytest.CaptureFixture[str], option: str) -> None:
        assert run([option]) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(("Usage: mcpmeter", "mcpmeter, version "))
        assert printed.err == ""


class TestErrors:
    @pytest.mark.parametrize("kind", [SetupError, ConfigInvalid, PortTaken, LedgerNotUsable, MissingDependency])
    def test_an_error_of_the_tree_is_one_line_and_code_1(
        self, capsys: pytest.CaptureFixture[str], give: Give, kind: type[MeterError]
    ) -> None:
        give(raising(kind("It broke.", hint="Fix it.")))
        assert run(["check"]) == 1
        assert capsys.readouterr() == ("", "mcpmeter: It broke. Fix it.\n")

    def test_a_missing_package_is_named_with_the_install_command(
        self, capsys: pytest.CaptureFixture[str], give: Give
    ) -> None:
        give(lambda: importlib.import_module("no_such_package"))
        assert run(["check"]) == 1
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert "'no_such_package'" in printed
        assert "pip install 'mcpmeter[server]'" in printed

    def test_a_missing_module_of_mcpmeter_is_a_bug(self, give: Give) -> None:
        give(lambda: importlib.import_module("mcpmeter.no_such_module"))
        with pytest.raises(ModuleNotFoundError):
            run(["check"])

    def test_an_error_of_the_operating_system_is_one_line(self, capsys: pytest.CaptureFixture[str], give: Give) -> None:
        give(raising(PermissionError(13, "Permission denied", "/etc/x")))
        assert run(["check"]) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("mcpmeter: The operating system refused (Permission denied: /etc/x). Check ")
        assert printed.count("\n") == 1

    def test_ctrl_c_is_code_130_without_output(self, capsys: pytest.CaptureFixture[str], give: Give) -> None:
        give(raising(KeyboardInterrupt()))
        assert run(["check"]) == 130
        assert capsys.readouterr().err.strip() == ""

    @pytest.mark.parametrize(("result", "code"), [(0, 0), (1, 1), (None, 0), ("text", 0)])
    def test_a_commands_result_is_the_exit_code(self, give: Give, result: object, code: int) -> None:
        give(lambda: result)
        assert run(["check"]) == code

    def test_a_bug_is_not_hidden(self, give: Give) -> None:
        give(raising(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            run(["check"])


def write_to(descriptor: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Buffered as for every user: what is left in the buffer fails once more when the interpreter ends."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [COMMAND, *arguments], stdout=descriptor, stderr=subprocess.PIPE, check=False, text=True, env=env
    )


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["--help"]], ids=" ".join)
class TestUnwritableOutput:
    def test_a_closed_pipe_is_silent(self, arguments: Sequence[str]) -> None:
        reads, writes = os.pipe()
        os.close(reads)
        try:
            done = write_to(writes, arguments)
        finally:
            os.close(writes)
        assert (done.returncode, done.stderr) == (1, "")

    def test_a_full_disk_is_one_line(self, arguments: Sequence[str]) -> None:
        with Path("/dev/full").open("w") as full:
            done = write_to(full.fileno(), arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("mcpmeter: The operating system refused (No space left on device).")
        assert done.stderr.count("\n") == 1


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    yield context.command_path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, click.Context(child, context, name))


EVERY = dict(commands(group, ROOT))


class TestHelp:
    def test_every_public_module_of_the_folder_is_a_command(self) -> None:
        files = {path.stem for path in Path(cli.__path__[0]).glob("*.py")}
        assert set(COMMANDS) == {name for name in files if not name.startswith("_")}
        assert group.get_command(ROOT, "_group") is None

    @pytest.mark.parametrize("path", EVERY)
    def test_every_command_has_a_summary_and_an_example(self, path: str) -> None:
        printed = EVERY[path].help or ""
        assert printed.split("\n", 1)[0].rstrip().endswith(".")
        _, _, example = printed.partition("Example:\n")
        assert path in example

    @pytest.mark.parametrize("path", EVERY)
    def test_every_option_has_a_help_text(self, path: str) -> None:
        unexplained = [p.name for p in EVERY[path].params if isinstance(p, click.Option) and not p.help]
        assert unexplained == []

    def test_the_page_is_generated_from_the_commands(self) -> None:
        assert (DOCS / "cli.md").read_text() == cli_reference(), "run: make docs"

    def test_the_page_has_every_command_and_no_local_path(self) -> None:
        page = cli_reference()
        assert re.findall(r"^## `(.+)`$", page, re.MULTILINE) == list(EVERY)
        assert str(Path.home()) not in page

    def test_help_imports_no_slow_package(self) -> None:
        slow = {"mcp", "httpx2", "starlette", "uvicorn", "pydantic", "apsw", "genai_prices", "rich"}
        script = f"import sys\nfrom mcpmeter.cli._group import run\nrun(['-h'])\nprint({slow} & set(sys.modules) or '')"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == ""
