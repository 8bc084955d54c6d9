"""The command line. A file beside this one that holds `command` is a command: adding one is one file."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Entry point of the console script. Exit codes: 0 fine, 1 found a problem, 2 wrong usage."""
    # While modules load, Python would answer Ctrl-C with a traceback, or lose it in a callback of the import system.
    # A command that has something to tidy up handles it by itself.
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
