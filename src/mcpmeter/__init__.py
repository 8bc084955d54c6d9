"""mcpmeter: the meter on MCP servers and on the LLM calls behind them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcpmeter.instrument import instrument as instrument

__all__ = ["instrument"]


def __getattr__(name: str) -> object:
    # Imported when first asked for: the command line and `mcpmeter.errors` alone do not pay for it.
    if name == "instrument":
        return import_module("mcpmeter.instrument")
    raise AttributeError(f"module 'mcpmeter' has no attribute {name!r}")
