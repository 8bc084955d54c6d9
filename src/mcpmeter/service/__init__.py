"""Wiring only: build the parts, start, drain, reload, say how it is."""

from mcpmeter.service.run import bind, run, running, serve
from mcpmeter.service.service import Service

__all__ = ["Service", "bind", "run", "running", "serve"]
