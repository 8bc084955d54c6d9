"""docs/cli.md and docs/errors.md, made from the commands and the errors: `python -m mcpmeter.cli._reference errors`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from typing import Final

import click

import mcpmeter
from mcpmeter import errors
from mcpmeter.cli._group import group
from mcpmeter.errors import CallerError, MeterError, ServiceFault, SetupError, UpstreamFault

COLUMNS: Final = 100

CLI_HEAD: Final = """\
# Command line

<!-- Made by `python -m mcpmeter.cli._reference cli`; a test holds it equal to the commands' own help. -->

Exit codes: 0 fine, 1 a problem was found (one line on stderr says what to do), 2 wrong usage, 130 interrupted.
"""

ERRORS_HEAD: Final = """\
# Errors

<!-- Made by `python -m mcpmeter.cli._reference errors`; a test holds it equal to the exception tree. -->

The id is stable: programs may match on it. It stands in the answer's error object beside a sentence that says what
happened and what to do. No message ever carries a body, a prompt or a key. `type` and `side` are the labels of
`mcp_errors_total`: faults of the side `client` are the caller's to mend and page nobody.
"""

ANSWERED: Final = (
    (CallerError, "The caller can mend it"),
    (UpstreamFault, "The provider's side"),
    (ServiceFault, "Our own side"),
)

REMEDIES: Final = {
    "validation_error": "Correct the request as the sentence says.",
    "invalid_request": "Correct the request as the sentence says; the same one fails again.",
    "body_too_large": "Send less, or have the operator raise `server.max_body_bytes`.",
    "body_too_slow": "Send the body in one go, within a minute; nothing was sent to a provider.",
    "overloaded": "Retry; the operator raises `max_connections` in `relay.timeouts`, or adds a replica.",
    "headers_too_large": "Send fewer or shorter ones; the limit is 64 KiB.",
    "route_not_found": "Take a path that `GET /` lists.",
    "method_not_allowed": "Use a verb that the sentence names.",
    "key_not_found": "Take an ID that `GET /api/keys` or `mcpmeter keys list` shows.",
    "key_configured": "Change it in the configuration and reload the service: docs/keys.md.",
    "not_authenticated": "Send a key: `Authorization: Bearer …`. `mcpmeter keys create` makes one.",
    "not_allowed": "Use a Host, Origin, model or key that the configuration allows.",
    "rate_limited": "Wait as long as Retry-After says.",
    "budget_exhausted": "Wait until it resets, ask for fewer tokens, or have it raised or topped up: docs/budgets.md.",
    "caller_gone": "Nothing: nobody reads it. What was delivered is charged as `partial`.",
    "upstream_fault": "Retry; if it lasts, look at the provider's status page.",
    "upstream_refused_account": "The operator checks the provider's key and credit.",
    "upstream_answered_garbage": "The operator checks the provider's `base_url`; then retry.",
    "upstream_answer_too_large": "Ask for less, or have the operator raise `relay.max_answer_bytes`.",
    "upstream_broke": "Retry; what was delivered is charged as `partial`.",
    "upstream_unreachable": "The operator checks the provider's `base_url`, name resolution and network.",
    "upstream_timed_out": "Retry, or have the operator raise `relay.timeouts`.",
    "upstream_rate_limited": "Wait as long as Retry-After says, or have the provider's quota raised.",
    "internal_error": "Retry; report it with the call's id, which the service's log explains.",
    "draining": "Retry; another replica, or the restarted service, answers.",
    "ledger_unavailable": "The operator looks at the ledger's disk: space, rights, health. Then retry.",
    "row_refused": "Report it with the call's id; no other call is touched.",
    "settlement_conflict": "A fault of ours: report it with the call's id.",
    "settled_twice": "A fault of ours: report it with the call's id.",
    "setup_error": "Do what the line says.",
    "config_invalid": "Correct the line that is named; `mcpmeter check` tells all faults at once.",
    "port_taken": "Stop what listens there, or choose another port.",
    "bill_invalid": "Correct the line that is named, or download the bill again; nothing was compared.",
    "ledger_not_usable": "Do what the line says: another file, more rights, or `mcpmeter serve` stopped first.",
    "part_missing": "Run the `pip install` of the line.",
    "registry_taken": "Give each meter its own registry, or close the first one.",
    "server_not_supported": "Give `instrument` a server of an SDK that the line names.",
}


def cli_reference() -> str:
    """Every command's help, in Markdown."""
    return "\n".join([CLI_HEAD, *_help_of(group, None, "mcpmeter")]) + "\n"


def _help_of(command: click.Command, parent: click.Context | None, name: str) -> Iterator[str]:
    context = click.Context(command, parent, name, terminal_width=COLUMNS, help_option_names=["-h", "--help"])
    yield f"## `{context.command_path}`\n"
    yield f"```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from _help_of(found, context, child)


def errors_reference() -> str:
    """Every error that a person may see, in Markdown."""
    known = all_errors()
    answered = [line for branch, title in ANSWERED for line in _answered(known, branch, title)]
    return "\n".join([ERRORS_HEAD, *answered, *_found_at_start(known)]) + "\n"


def all_errors() -> list[type[MeterError]]:
    """The tree of `mcpmeter.errors` in its order, then the errors that one other part raises, by id."""
    for module in pkgutil.walk_packages(mcpmeter.__path__, "mcpmeter."):
        importlib.import_module(module.name)
    tree = list(vars(errors).values())
    return sorted(_below(MeterError), key=lambda kind: (tree.index(kind) if kind in tree else len(tree), kind.id))


def _below(base: type[MeterError]) -> set[type[MeterError]]:
    ours = {kind for kind in base.__subclasses__() if kind.__module__.startswith("mcpmeter.")}
    return ours.union(*map(_below, ours))


def _answered(known: list[type[MeterError]], branch: type[MeterError], title: str) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| id | HTTP | JSON-RPC | type | side | what happened | what to do |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for error in (kind for kind in known if issubclass(kind, branch)):
        counted = f"{error.http_status} | {error.jsonrpc_code} | `{error.error_type}` | {error.side}"
        yield f"| `{error.id}` | {counted} | {sentence(error)} | {REMEDIES[error.id]} |"
    yield ""


def _found_at_start(known: list[type[MeterError]]) -> Iterator[str]:
    yield "## Found at start or by a command\n"
    yield "Printed as one line with exit code 1; the library raises them. None of them is counted or answered.\n"
    yield "| id | what happened | what to do |"
    yield "| --- | --- | --- |"
    for error in (kind for kind in known if issubclass(kind, SetupError)):
        yield f"| `{error.id}` | {sentence(error)} | {REMEDIES[error.id]} |"


def sentence(error: type[MeterError]) -> str:
    """What happened, from the class's own description."""
    return " ".join((error.__doc__ or "").split())


if __name__ == "__main__":
    sys.stdout.write({"cli": cli_reference, "errors": errors_reference}[sys.argv[1]]())
