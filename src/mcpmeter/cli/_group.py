"""Finds the commands and prints every error as one line that says what to do."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from difflib import get_close_matches

import click

from mcpmeter.errors import MeterError, MissingDependency, SetupError


class CommandsInThisFolder(click.Group):
    """A group whose commands are the modules of `mcpmeter.cli`, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules([os.path.dirname(__file__)]) if not m.name.startswith("_"))

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
        hint = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(known)}."
        raise click.UsageError(f"No such command '{name}'. {hint}", ctx)


@click.group(cls=CommandsInThisFolder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mcpmeter")
def group() -> None:
    """The meter on MCP servers and on the LLM calls behind them.

    \b
    Example:
      mcpmeter demo            try it: needs no key and no network
      mcpmeter serve           meter real traffic, with the providers of the environment
    """


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. Errors of the tree are printed without a traceback.

    A closed pipe (`| head`) ends the command silently: click does that, with exit code 1.
    """
    try:
        result = group.main(list(arguments), prog_name="mcpmeter", standalone_mode=False)
    except click.Abort:
        return 130
    except click.ClickException as usage:
        usage.show()
        return usage.exit_code
    except MeterError as error:
        return _fail(error)
    except ModuleNotFoundError as missing:
        return _fail(_missing_dependency(missing))
    except OSError as fault:
        _discard_stdout()
        return _fail(_system_error(fault))
    return result if isinstance(result, int) else 0


def _fail(error: MeterError) -> int:
    click.echo(f"mcpmeter: {error}", err=True)
    return 1


def _missing_dependency(missing: ModuleNotFoundError) -> MissingDependency:
    if (missing.name or "mcpmeter").partition(".")[0] == "mcpmeter":
        raise missing  # a bug, which no installation fixes
    return MissingDependency(
        f"This command needs the package '{missing.name}', which is not installed.",
        hint="Run: pip install 'mcpmeter[server]'",
    )


def _system_error(fault: OSError) -> SetupError:
    where = f": {fault.filename}" if fault.filename else ""
    return SetupError(
        f"The operating system refused ({fault.strerror or type(fault).__name__}{where}).",
        hint="Check the disk space and this user's permissions, then run it again.",
    )


def _discard_stdout() -> None:
    """Drops what a full disk did not accept: the interpreter would try again at exit and print a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
