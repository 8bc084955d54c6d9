"""The actor of administrative acts that tests make without a command or a request."""

from __future__ import annotations

from typing import Final

from mcpmeter.records import Actor

BY: Final = Actor(name="a test", source="local")
