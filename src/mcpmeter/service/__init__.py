"""The running service: it builds the parts from the configuration, starts, drains and reloads them.

Owns: the route table, label sets, pages, the management API, listeners and signals.
Owns not: what a call does (relay/), how HTTP is framed (http/), what a tool answers (mcp_server/).
Invariants: every request is counted exactly once; a faulty reload changes nothing; nothing else reads the configuration
but the command line.
"""

from mcpmeter.service.capacity import raise_descriptor_limit
from mcpmeter.service.run import bind, running, serve
from mcpmeter.service.service import Service

__all__ = ["Service", "bind", "raise_descriptor_limit", "running", "serve"]
