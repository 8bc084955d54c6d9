"""`python -m benchmarks.tracer SOCKET ARGS`: runs `mcpmeter ARGS` and reports which of its functions run.

`start` on the Unix socket begins a recording, `stop` returns it as JSON: [file, function] in the order of first entry.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import threading
import time
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, FrameType

PACKAGE = "mcpmeter"
INLINED = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
"""Parts of the function around them: whether they have a frame depends on the version of Python."""

QUIET_NS = 20_000_000
"""A recording ends when none of the package's code has run for so long, but lasts at most MAX_RECORDING_NS more."""

MAX_RECORDING_NS = 2_000_000_000


class Tracer:
    """Records the package's functions in every thread that starts after `install`, and in the calling one."""

    def __init__(self, package: Path) -> None:
        self._root = f"{package}{os.sep}"
        self._known: dict[CodeType, tuple[str, str] | None] = {}
        self._seen: dict[tuple[str, str], None] = {}
        self._is_recording = False
        self._last_ns = 0

    def install(self) -> None:
        """Trace from now on."""
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)

    def start(self) -> None:
        """Begin an empty recording."""
        self._seen = {}
        self._is_recording = True

    def stop(self) -> list[tuple[str, str]]:
        """Return the recording once the package is quiet."""
        ends_ns = time.perf_counter_ns() + MAX_RECORDING_NS
        while (now_ns := time.perf_counter_ns()) < ends_ns and now_ns - self._last_ns < QUIET_NS:
            time.sleep(QUIET_NS / 4e9)
        self._is_recording = False
        return list(self._seen)

    def _on_event(self, frame: FrameType, event: str, argument: object) -> None:
        # Not only calls: a loop that runs as long as its thread is entered before the recording begins.
        if not self._is_recording:
            return
        code = frame.f_code
        if code not in self._known:
            self._known[code] = self._function(code)
        if (function := self._known[code]) is not None:
            self._seen.setdefault(function)
            self._last_ns = time.perf_counter_ns()

    def _function(self, code: CodeType) -> tuple[str, str] | None:
        if not code.co_filename.startswith(self._root):
            return None
        names = [name for name in code.co_qualname.split(".") if name != "<locals>"]
        while names[-1] in INLINED and len(names) > 1:
            names.pop()
        return Path(code.co_filename.removeprefix(self._root)).as_posix(), ".".join(names)


def main() -> None:
    """Run the command as its console script does."""
    address, *sys.argv[1:] = sys.argv[1:]
    spec = importlib.util.find_spec(PACKAGE)
    (command,) = entry_points(group="console_scripts", name=PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{PACKAGE} is not installed. Run: make install")
    tracer = Tracer(Path(spec.submodule_search_locations[0]).resolve())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    threading.Thread(target=_control, args=(tracer, listener), daemon=True).start()
    tracer.install()
    command.load()()


def _control(tracer: Tracer, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection.makefile("rw") as lines:
        for line in lines:
            recording = []
            if line == "start\n":
                tracer.start()
            else:
                recording = tracer.stop()
            lines.write(f"{json.dumps(recording)}\n")
            lines.flush()


if __name__ == "__main__":
    main()
