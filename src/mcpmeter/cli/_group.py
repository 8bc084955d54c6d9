"""Finds the commands and turns every error into one line that says what to do."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from difflib import get_close_matches

import click

from mcpmeter import cli
from mcpmeter.errors import MeterError, MissingDependency, SetupError


class CommandsInThisFolder(click.Group):
    """A group whose commands are the modules of `mcpmeter.cli`, imported only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules(cli.__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"mcpmeter.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises click.UsageError that names the nearest command, or all of them."""
        name, known = args[0], self.list_commands(ctx)
        if name in known or name.startswith("-"):
            return super().resolve_command(ctx, args)
        near = get_close_matches(name, known, n=1)
        way_out = f"Did you mean '{near[0]}'?" if near else f"There is: {', '.join(known)}."
        raise click.UsageError(f"No such command '{name}'. {way_out}", ctx)


@click.group(cls=CommandsInThisFolder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mcpmeter")
def group() -> None:
    """The meter on MCP servers and on the LLM calls behind them.

    \b
    Example:
      mcpmeter demo            watch it work: no key, no network needed
      mcpmeter serve           meter real traffic, providers taken from the environment
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. No traceback reaches the screen for an error of the tree.

    A reader that closes its end of a pipe (`| head`) ends the command silently: click sees to that, with exit code 1.
    """
    try:
        result = group.main(list(arguments), prog_name="mcpmeter", standalone_mode=False)
    except click.Abort:
        return 130
    except click.ClickException as wrong:
        wrong.show()
        return wrong.exit_code
    except MeterError as error:
        return _fail(error)
    except ModuleNotFoundError as missing:
        return _fail(_part_missing(missing))
    except OSError as fault:
        _give_up_stdout()
        return _fail(_system_refused(fault))
    return result if isinstance(result, int) else 0


def _fail(error: MeterError) -> int:
    click.echo(f"mcpmeter: {error}", err=True)
    return 1


def _part_missing(missing: ModuleNotFoundError) -> MissingDependency:
    if (missing.name or "mcpmeter").partition(".")[0] == "mcpmeter":
        raise missing  # a fault of ours, which no installation mends
    return MissingDependency(
        f"This command needs the package '{missing.name}', which is not installed.",
        hint="Run: pip install 'mcpmeter[server]'",
    )


def _system_refused(fault: OSError) -> SetupError:
    where = f": {fault.filename}" if fault.filename else ""
    return SetupError(
        f"The system refused ({fault.strerror or type(fault).__name__}{where}).",
        hint="Check the space on the disk and the rights of this user, then run it again.",
    )


def _give_up_stdout() -> None:
    """What is still buffered for a full disk would fail once more, with a traceback, when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
