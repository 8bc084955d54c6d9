"""The actor of a command in the audit: the operating system's user on this machine."""

from __future__ import annotations

import os
import pwd
import socket

from mcpmeter.records import Actor


def this_user() -> Actor:
    """The user that runs the command. By the process's own user id, because anyone can set $USER."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container the user may have no entry
        name = f"uid {uid}"
    return Actor(name=f"{name} (command line)", source=socket.gethostname() or "local")
