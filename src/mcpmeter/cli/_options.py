"""The options that several commands share, and the ledger they lead to."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcpmeter.errors import ConfigInvalid

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location

_Command = TypeVar("_Command", bound=Callable[..., Any])
_MAX_NS = 2**63 - 1


class LedgerType(click.ParamType[Any]):
    """A ledger's location. Errors do not repeat it, because it may contain a password."""

    name = "ledger"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """The location that a text names."""
        from mcpmeter.ledger.location import location_of

        return location_of(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The metavar in the help text."""
        return "PATH|URL"


def config_option_for(help: str) -> Callable[[_Command], _Command]:
    """`--config`, passed as `config_path`."""
    return click.option("--config", "config_path", type=click.Path(path_type=Path), help=help)


config_option = config_option_for("The service's configuration; default: $MCPMETER_CONFIG, else ./mcpmeter.yaml.")


def ledger_option(function: _Command) -> _Command:
    """`--ledger`; None means the one that `ledger_at` finds."""
    return click.option(
        "--ledger",
        type=LedgerType(),
        help="The ledger: a file, or postgresql://user@host/database. Default: ledger.path or ledger.url of the "
        "configuration, else $MCPMETER_LEDGER, else ~/.local/state/mcpmeter/ledger.db.",
    )(function)


def json_option(help: str = "Print one JSON object.") -> Callable[[_Command], _Command]:
    """`--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=help)


def currency_options(function: _Command) -> _Command:
    """`--currency` and `--rate`; see `check_currency`."""
    function = click.option(
        "--rate", callback=_exchange_rate, metavar="NUMBER", help="Units of --currency per US dollar, for example 7.1."
    )(function)
    return click.option(
        "--currency", metavar="CODE", help="Also show amounts in this currency, for example CNY. Needs --rate."
    )(function)


def _exchange_rate(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Decimal | None:
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", value, re.ASCII) or not Decimal(value):
        raise click.BadParameter(f"{value[:40]!r} is no exchange rate. Write for example 7.1.")
    return Decimal(value)


def check_currency(code: str | None, rate: Decimal | None) -> None:
    """Raises click.UsageError unless both options are given, or none."""
    if (code is None) != (rate is None):
        raise click.UsageError("--currency and --rate go together, for example: --currency CNY --rate 7.1")
    if code is not None and not re.fullmatch(r"[A-Z]{3}", code):
        raise click.UsageError("--currency takes a code of three capital letters, for example CNY.")


def ledger_at(option: Location | None, config_path: Path | None) -> Location:
    """The ledger that `--ledger` names, else the one `mcpmeter serve` opens with this configuration.

    Reads only the section `ledger`, which needs no provider's key. Raises click.UsageError for its faults.
    """
    from mcpmeter.config import find_file, load_sections

    if option is not None:
        return option
    with config_faults_as_usage_errors():
        return load_sections(find_file(config_path, os.environ), os.environ, "ledger").ledger.location


@contextlib.contextmanager
def config_faults_as_usage_errors() -> Iterator[None]:
    """Exit code 2 for a faulty configuration: for several commands 1 means a problem in the ledger."""
    try:
        yield
    except ConfigInvalid as fault:
        raise click.UsageError(str(fault)) from None


def unix_ns(instant: datetime | None) -> int | None:
    """An option's instant (UTC) in Unix ns, clamped to the ledger's range."""
    if instant is None:
        return None
    return max(0, min(int(instant.replace(tzinfo=UTC).timestamp()) * 10**9, _MAX_NS))
