"""Finds the commands and turns every error into one line that says what to do."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

import click

from mcpmeter import cli
from mcpmeter.errors import MeterError, PartMissing


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
    """Run one command line and return its exit code. No traceback reaches the screen for an error of the tree."""
    try:
        result = group.main(list(arguments), prog_name="mcpmeter", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return 130
    except click.ClickException as wrong:
        wrong.show()
        return wrong.exit_code
    except MeterError as error:
        click.echo(f"mcpmeter: {error}", err=True)
        return 1
    except ModuleNotFoundError as missing:
        part = PartMissing(
            f"This command needs the package '{missing.name}', which is not installed.",
            hint="Run: pip install 'mcpmeter[server]'",
        )
        click.echo(f"mcpmeter: {part}", err=True)
        return 1
    except BrokenPipeError:
        return 0
    return result if isinstance(result, int) else 0
