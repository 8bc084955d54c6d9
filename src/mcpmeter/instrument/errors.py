"""Why a server cannot be metered."""

from __future__ import annotations

from mcpmeter.errors import SetupError


class ServerNotSupported(SetupError):
    """The object is not an MCP server that can be metered."""

    id = "server_not_supported"


class RegistryTaken(SetupError):
    """Another meter already uses this registry, or this server is already metered."""

    id = "registry_taken"
