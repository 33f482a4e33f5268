"""Nodes that meet: each hands something in, and all get what all have handed in, or learn who is missing.

The first node listens at the rendezvous, which is the address that a run would use; the others connect to it, one line
of JSON a message. There is no torch in it, so that nodes meet whose torch does not load, and every wait has an end.
What is received is compared and shown, never executed. With RLHF_DOCTOR_TOKEN in the environment only nodes with the
same token are let in.
"""

from __future__ import annotations

import errno
import hmac
import os
import select
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from launch.checking.lines import ATTEMPT_SECONDS, Line, why
from rlhf.errors import ConfigError, RLHFError

PROTOCOL = "rlhf doctor 1"
TOKEN = "RLHF_DOCTOR_TOKEN"
AGAIN_SECONDS = 0.5  # between attempts

Say = Callable[[str], None]


class MeetingError(RLHFError):
    """Nodes do not meet, or part before they are done."""


@dataclass(frozen=True)
class Invitation:
    """How many are to meet, where."""

    nodes: int
    host: str
    port: int
    rank: int | None = None  # this node's, if it was given one
    seconds: float = 60.0  # to wait for everybody

    @property
    def place(self) -> str:
        """For people."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def invitation(nodes: int, rendezvous: str, rank: int | None, seconds: float) -> Invitation:
    """From what somebody types. Raises ConfigError."""
    try:
        parts = urlsplit(f"//{rendezvous}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.netloc != rendezvous or parts.username is not None:
        raise ConfigError(f"--rendezvous {rendezvous}: is no address; write HOST:PORT, as in node-1:29400")
    if rank is not None and rank >= nodes:
        raise ConfigError(f"--node-rank {rank}: of --nodes {nodes} the last is {nodes - 1}")
    return Invitation(nodes, host, port, rank, seconds)


@dataclass
class Meeting:
    """Who has come. A meeting of one needs no network."""

    rank: int
    names: dict[int, str]  # of those who came, by rank
    address: str  # of this node, as the others see it
    id: str
    expected: int = 1
    lines: dict[int, Line] = field(default_factory=dict)  # of the first node to the others; of another to the first
    lost: dict[int, str] = field(default_factory=dict)  # who left too early, and why

    @property
    def first(self) -> bool:
        """Whether this node decides, and speaks."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """This node's."""
        return self.names[self.rank]

    @property
    def missing(self) -> list[int]:
        """Ranks that never came."""
        return [rank for rank in range(self.expected) if rank not in self.names]

    def exchange(self, mine: Any, seconds: float) -> dict[int, Any]:
        """What all who are here hand in, by rank.

        Raises MeetingError on a node whose connection to the first is lost; the first goes on with those who are left.
        """
        if not self.first:
            try:
                self.lines[0].send(mine)
                told: dict[str, Any] = self.lines[0].receive(seconds + 2 * ATTEMPT_SECONDS)
                return {int(rank): each for rank, each in told.items()}
            except (OSError, ValueError, AttributeError) as error:
                raise MeetingError(
                    f"{self.names[0]}, the first node, has gone ({why(error)}); its output says more"
                ) from error
        given, deadline = {0: mine}, time.monotonic() + seconds
        for rank in list(self.lines):
            try:
                given[rank] = self.lines[rank].receive(max(0.1, deadline - time.monotonic()))
            except (OSError, ValueError) as error:
                self.lose(rank, error)
        for rank in list(self.lines):
            try:
                self.lines[rank].send(given)
            except OSError as error:
                self.lose(rank, error)
        return given

    def waited_for(self) -> bool:
        """Whether another node has handed in something that we have not, or has gone."""
        asked = select.poll()
        for line in self.lines.values():
            asked.register(line.connection, select.POLLIN)
        return bool(asked.poll(0))

    def lose(self, rank: int, error: Exception) -> None:
        """Go on without a node."""
        self.lost[rank] = why(error)
        self.lines.pop(rank).close()

    def close(self) -> None:
        """Part."""
        for line in self.lines.values():
            line.close()


def alone(name: str) -> Meeting:
    """A meeting of one."""
    return Meeting(0, {0: name}, "127.0.0.1", uuid.uuid4().hex[:8])


def meet(invited: Invitation, name: str, say: Say) -> Meeting:
    """Meet the others, as the first where the rendezvous is an address of this machine.

    Raises MeetingError where nobody answers in time, ConfigError where the rendezvous cannot be.
    """
    deadline = time.monotonic() + invited.seconds
    if invited.rank in (None, 0) and (listener := listening(invited)):
        with listener:
            return receive_all(invited, listener, name, deadline, say)
    return come(invited, name, deadline)


def listening(invited: Invitation) -> socket.socket | None:
    """A listener at the rendezvous; None where that is another machine's address, or another node of ours has it."""
    try:
        family, _, _, _, where = socket.getaddrinfo(invited.host, invited.port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return None  # a name that may yet come to be; see `come`
    if str(where[0]).startswith("127.") and not invited.host.startswith(("127.", "localhost")):
        raise ConfigError(
            f"--rendezvous {invited.place}: {invited.host} leads to {where[0]} on this machine, which no other one "
            "reaches; give its address in the network, or correct /etc/hosts"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE) and invited.rank is None:
            return None
        remedy = {
            errno.EADDRNOTAVAIL: "--node-rank 0 is the node whose address that is",
            errno.EADDRINUSE: "something listens there, perhaps of an old run; end it or give another port",
        }.get(error.errno or 0, "give another port")
        raise ConfigError(f"--rendezvous {invited.place}: {error.strerror}; {remedy}") from error
    return listener


def receive_all(invited: Invitation, listener: socket.socket, name: str, deadline: float, say: Say) -> Meeting:
    """The first node: wait until all have come, or the time is up."""
    meeting = Meeting(0, {0: name}, str(listener.getsockname()[0]), uuid.uuid4().hex[:8], invited.nodes)
    came: list[tuple[int | None, str, Line]] = []
    while len(came) < invited.nodes - 1 and time.monotonic() < deadline:
        say(f"{len(came) + 1} of {invited.nodes} nodes are at {invited.place}")
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        with suppress(TimeoutError):
            connection, _ = listener.accept()
            line = Line(connection)
            try:
                hello = line.receive(ATTEMPT_SECONDS)
                if refused := refusal(invited, hello, [rank for rank, _, _ in came]):
                    line.send({"refused": refused})
                    line.close()
                else:
                    came.append((hello.get("rank"), printable(hello.get("name")), line))
            except (OSError, ValueError):
                line.close()  # a port scan, or a node that went again
    # Those with a rank first; the others fill what is left, in the order in which they came.
    taken = {rank for rank, _, _ in came if rank is not None}
    free = iter(rank for rank in range(1, invited.nodes) if rank not in taken)
    for rank, theirs, line in sorted(came, key=lambda each: each[0] is None):
        place = next(free) if rank is None else rank
        meeting.lines[place] = line
        meeting.names[place] = theirs if theirs not in meeting.names.values() else f"{theirs} ({place})"
    meeting.names = dict(sorted(meeting.names.items()))
    for place, line in list(meeting.lines.items()):
        try:
            line.send({"rank": place, "names": meeting.names, "id": meeting.id})
        except OSError as error:
            meeting.lose(place, error)
    return meeting


def printable(name: object) -> str:
    """A name as it can be shown."""
    return "".join(each for each in str(name)[:64] if each.isprintable())


def refusal(invited: Invitation, hello: Any, taken: list[int | None]) -> str | None:
    """Why somebody who comes cannot take part."""
    if not isinstance(hello, dict) or hello.get("protocol") != PROTOCOL:
        return f"another version of rlhf ({PROTOCOL} here); install the same on all nodes"
    if not hmac.compare_digest(str(hello.get("token")).encode(), os.environ.get(TOKEN, "").encode()):
        return f"another token; set {TOKEN} to the same on all nodes, or on none"
    if hello.get("nodes") != invited.nodes:
        return f"--nodes {hello.get('nodes')} there and --nodes {invited.nodes} here; give the same on all nodes"
    rank = hello.get("rank")
    if rank is not None and rank not in range(invited.nodes):
        return f"--node-rank {rank}: of --nodes {invited.nodes} the last is {invited.nodes - 1}"
    if rank is not None and (rank in taken or rank == 0):
        return f"--node-rank {rank} has been given twice; give each node its own, or none"
    return None


def come(invited: Invitation, name: str, deadline: float) -> Meeting:
    """Another node: connect to the first, again and again until the time is up."""
    hello = {"protocol": PROTOCOL, "token": os.environ.get(TOKEN, ""), "nodes": invited.nodes}
    hello |= {"rank": invited.rank, "name": name}
    error: Exception = TimeoutError()
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = Line(socket.create_connection((invited.host, invited.port), min(ATTEMPT_SECONDS, left)))
        except OSError as failed:
            error = failed
            time.sleep(min(AGAIN_SECONDS, left))
            continue
        try:
            line.send(hello)
            told = line.receive(left + 2 * ATTEMPT_SECONDS)
            if "refused" in told:
                raise ConfigError(f"--rendezvous {invited.place}: refused by the node there: {told['refused']}")
            names = {int(rank): str(each) for rank, each in told["names"].items()}
            return Meeting(int(told["rank"]), names, line.address, str(told["id"]), invited.nodes, {0: line})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as wrong:
            line.close()
            raise MeetingError(
                f"{invited.place}: who listens there is no rlhf doctor, or has ended ({why(wrong)}); see that nothing "
                "else has the port"
            ) from wrong
    if isinstance(error, socket.gaierror):
        raise ConfigError(f"--rendezvous {invited.place}: no such host ({error.strerror}); correct the name")
    raise MeetingError(
        f"{name} does not reach {invited.place} within {invited.seconds:g} s ({why(error)}); start the same command on "
        "that host, and let the port through its firewall"
    )
