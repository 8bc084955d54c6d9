"""The command line: each module without a leading underscore is a command, its `command` object.

Owns options, output and exit codes. Commands import what they run only when they run, so that `--help` stays fast.

Invariants: errors are one line on stderr with what to do next, never a traceback; `--json` prints only JSON to stdout.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Entry point of the console script. Exit codes: 0 success, 1 a problem was found, 2 wrong usage."""
    # While modules load, Ctrl-C would print a traceback, or be lost in a callback of the import system.
    # Commands that have to clean up install a handler of their own.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from mcpmeter.cli._group import run
    except ModuleNotFoundError as missing:
        sys.stderr.write(
            f"mcpmeter: the command line needs the package '{missing.name}', which is not installed. "
            "Run: pip install 'mcpmeter[server]'\n"
        )
        raise SystemExit(1) from None
    raise SystemExit(run(sys.argv[1:]))
