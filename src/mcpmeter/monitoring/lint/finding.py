"""What the linter says."""

from __future__ import annotations

from typing import Literal

import msgspec


class LintIssue(msgspec.Struct, frozen=True, kw_only=True):
    """One defect: where, how bad, which kind, what happens, and what to write instead."""

    file: str
    place: str
    """The alert's, rule's or panel's name."""
    level: Literal["error", "warning"]
    """error: it can never match or be loaded, or says something else than it seems; warning: it will mislead."""
    kind: str
    message: str
    hint: str = ""
