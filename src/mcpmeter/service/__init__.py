"""Wiring only: build the parts, start, drain, reload, say how it is."""

from mcpmeter.service.build import Service
from mcpmeter.service.run import bind, run, running, serve

__all__ = ["Service", "bind", "run", "running", "serve"]
