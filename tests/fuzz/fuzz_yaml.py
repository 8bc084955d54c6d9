"""Any text as a configuration: settings, or one line for each fault."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.fuzz.harness import Target

from mcpmeter.config import load
from mcpmeter.errors import ConfigInvalid
from mcpmeter.providers import load_providers

ENVIRON = {"OPENAI_API_KEY": "sk-openai-0001", "NAME": "value", "EMPTY": ""}
SECRET = "hunter2secret"
WORDS = tuple(
    word.encode()
    for word in (
        "server:\n", "  port: 8080\n", "providers:\n", "- name: openai\n", "  api_key: ${OPENAI_API_KEY}\n",
        "budgets:\n", "  limit_usd: 1\n", "  period: week\n", "keys:\n", "teams: [a, b]\n", "routes:\n",
        "aliases: {a: openai/b}\n", "monitoring:\n", "pricing:\n", "ledger:\n",
        "relay: {timeouts: {idle_seconds: 1}}\n", "&a ", "*a", "<<: *a\n", "!!int ", "!x ", "? ", ": ", "- ", "  ",
        "[", "]", "{", "}", "|\n", ">-\n", "---\n", "...\n", "%YAML 1.1\n", "# ", "'", '"', "${NAME}", "${NAME:-x}",
        "$${", "${", "~", "null", "yes", "0x10", "1_000", "0o7", ".inf", ".nan", "1e3", "12:30:45", "2026-01-01",
        "\\UFFFFFFFF", "\\x00", "\t", "@", "`", "a: &a [*a]\n", "a: [x, x]\n",
    )
)  # fmt: skip
LINE = re.compile(r".*:\d+: .+")
_builtin = load_providers()


def check(data: bytes) -> None:
    """Load a file with this content."""
    with tempfile.TemporaryDirectory(prefix="mcpmeter-fuzz-") as folder:
        path = Path(folder, "mcpmeter.yaml")
        path.write_bytes(data)
        try:
            settings = load(path, ENVIRON, _builtin)
        except ConfigInvalid as refused:
            text = str(refused)
            assert text.isprintable() or "\n" in text
            assert all(line.startswith(f"{path}") for line in text.splitlines()) or len(text.splitlines()) == 1, text
            return
        assert settings.providers
        settings.monitoring.options()


TARGET = Target("yaml", check, check, WORDS, ("config/faults/*.yaml", "../examples/*.yaml"), grown_bytes=32 * 1024)
