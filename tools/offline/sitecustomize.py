"""Refuses every connection to another machine, in any Python process that has this folder on PYTHONPATH.

`make test` and tools/chapters.py use it, so that a chapter that needs a network can't be committed. Python
imports a module of this name at start, in pytest, in its workers and in notebook kernels alike.
"""

from __future__ import annotations

import socket
from typing import Any

LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", ""}


class NetworkUsed(OSError):
    """A test or a chapter tried to reach another machine."""


def require_local(address: Any) -> None:
    """Raises :class:`NetworkUsed` when ``address`` is on another machine."""
    if isinstance(address, tuple) and str(address[0]) not in LOCAL:  # others are paths of local sockets
        raise NetworkUsed(f"No network here: tests and chapters at quick must not reach {address[0]!r}.")


class LocalSocket(socket.socket):
    """A socket that only reaches this machine."""

    def connect(self, address: Any) -> None:
        require_local(address)
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        require_local(address)
        return super().connect_ex(address)


def block_network() -> None:
    """Refuses connections and look-ups of names from here on, in this process."""
    if socket.socket is LocalSocket:
        return
    look_up = socket.getaddrinfo

    def look_up_locally(host: Any, *arguments: Any, **options: Any) -> Any:
        require_local((host.decode() if isinstance(host, bytes) else host or "",))
        return look_up(host, *arguments, **options)

    socket.socket = LocalSocket  # type: ignore[misc]
    socket.getaddrinfo = look_up_locally


block_network()
