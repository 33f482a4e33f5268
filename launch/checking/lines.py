"""One connection between two nodes: a line of JSON a message, and an end to every wait."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

MOST_BYTES = 2**26  # of a message: what some thousand nodes tell
ATTEMPT_SECONDS = 5.0  # of one attempt to connect, and until a node says who it is


class Line:
    """A connection, message by message."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.left = b""
        alive(connection)

    @property
    def address(self) -> str:
        """Our own end."""
        return str(self.connection.getsockname()[0])

    def send(self, message: Any) -> None:
        """Hand over a message. Raises OSError."""
        self.connection.settimeout(ATTEMPT_SECONDS)
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> Any:
        """The next message. Raises OSError where none comes in time, ValueError for one that is none."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.left:
            if len(self.left) > MOST_BYTES:
                raise ValueError("too long")
            self.connection.settimeout(max(0.01, deadline - time.monotonic()))
            part = self.connection.recv(2**16)
            if not part:
                raise ConnectionError("closed")
            self.left += part
        line, _, self.left = self.left.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


def alive(connection: socket.socket) -> None:
    """Have the kernel notice within some 20 seconds that the other machine is gone."""
    if connection.family == socket.AF_UNIX:  # to a process of this machine
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def why(error: Exception) -> str:
    """What has become of a connection, for people."""
    if isinstance(error, TimeoutError):
        return "no answer, as behind a firewall or a cable that is out"
    if isinstance(error, ConnectionRefusedError):
        return "refused: nobody listens"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return f"no answer of ours: {type(error).__name__}"
