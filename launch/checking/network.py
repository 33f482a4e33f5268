"""The network between nodes: interfaces, ports, and how far their clocks are apart."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil

from launch.checking.finding import Facts, Finding, failure, listed, ok, warning
from launch.checking.lines import Line, why

CHECK, CLOCKS = "network", "clocks"
CONNECT_SECONDS = 5.0
QUESTIONS = 8  # to each node; the quickest answer tells its clock best
AT_ONCE = 64  # nodes asked
SHOWN = 6  # lines about single pairs
# torchrun's rendezvous takes a node for dead whose word is older than 3 times 5 seconds by its own clock.
APART_FAILURE, APART_WARNING = 15.0, 1.0
INFINIBAND = Path("/sys/class/infiniband")
INTERFACES = Path("/sys/class/net")
GLOO = "GLOO_SOCKET_IFNAME"


class Interfaces(Facts):
    """What a node has to talk through."""

    name: str | None  # that the address others see belongs to
    mtu: int | None
    asked: str | None  # of GLOO_SOCKET_IFNAME
    others: tuple[str, ...]  # that are up
    host_resolves: str | None  # to which address the host's own name leads, which gloo takes unless it is asked
    infiniband: tuple[str, ...]  # active ports
    infiniband_down: tuple[str, ...]


class Seen(Facts):
    """What a node has seen of another."""

    seconds: float | None = None  # of a round trip, the quickest
    ahead: float | None = None  # by how many seconds the other's clock is ahead of ours
    error: str | None = None


def look(address: str) -> Interfaces:
    """Those of this machine; address: the one that other nodes see."""
    up = {name for name, status in psutil.net_if_stats().items() if status.isup}
    name = interface_of(address)
    resolved = None
    with suppress(OSError):
        resolved = socket.gethostbyname(socket.gethostname())
    active: list[str] = []
    down: list[str] = []
    for port in sorted(INFINIBAND.glob("*/ports/*")):
        with suppress(OSError):
            state = (port / "state").read_text(encoding="utf-8")
            (active if "ACTIVE" in state else down).append(f"{port.parents[1].name}:{port.name}")
    return Interfaces(
        name=name,
        mtu=psutil.net_if_stats()[name].mtu if name else None,
        asked=os.environ.get(GLOO),
        others=tuple(sorted(up - {"lo"})),
        host_resolves=resolved,
        infiniband=tuple(active),
        infiniband_down=tuple(down),
    )


def interface_of(address: str) -> str | None:
    """The interface that has an address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return str(name)
    return None


def judge_one(node: Interfaces, address: str) -> list[Finding]:
    """What a node's interfaces say, where there are other nodes."""
    found = []
    if node.asked and node.asked not in node.others:
        there = listed(node.others) or "none"
        what = f"{GLOO}={node.asked}: no such interface is up; there is {there}"
        found.append(failure(CHECK, what, f"export {GLOO}={node.name or 'INTERFACE'}"))
    elif not node.asked and node.host_resolves != address:
        leads = f"leads to {node.host_resolves}" if node.host_resolves else "is not known to it"
        what = f"the node's own name {leads}, which gloo would tell the others, and not to {address}"
        found.append(warning(CHECK, what, f"export {GLOO}={node.name or 'INTERFACE'}"))
    if node.infiniband_down:
        found.append(warning(CHECK, f"InfiniBand {listed(node.infiniband_down)}: not active", "see ibstat"))
    return found


def judge_interfaces(nodes: Mapping[str, Interfaces]) -> list[Finding]:
    """Where nodes differ."""
    found = []
    sizes = {name: node.mtu for name, node in nodes.items() if node.mtu}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        what = f"packets of several sizes (MTU): {told}; large ones may get lost, and collectives hang"
        found.append(failure(CHECK, what, "set the same on all nodes and on the switch"))
    ports = {name: len(node.infiniband) for name, node in nodes.items()}
    if len(set(ports.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in ports.items())
        found.append(warning(CHECK, f"InfiniBand ports differ: {told}", "see ibstat on the node that has fewer"))
    return found


class Post:
    """Answers other nodes with the time, on a port that the system gives, as it gives those of gloo and NCCL."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.bind((address, 0))
        self.listener.listen(1024)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it answers."""
        return int(self.listener.getsockname()[1])

    def close(self) -> None:
        """Answer nobody any more."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(Line(connection),), daemon=True).start()

    def _answer(self, line: Line) -> None:
        with suppress(OSError, ValueError):
            while True:
                line.receive(CONNECT_SECONDS)
                line.send(time.time())
        line.close()


def ask_all(places: Mapping[int, tuple[str, int]], own: int) -> dict[int, Seen]:
    """What this node sees of each other one, by rank."""
    others = [rank for rank in places if rank != own]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(others, pool.map(lambda rank: ask(*places[rank]), others), strict=True))


def ask(address: str, port: int) -> Seen:
    """Ask a node for the time, as NTP does (RFC 5905): half of the quickest round trip is how long its word took."""
    try:
        line = Line(socket.create_connection((address, port), CONNECT_SECONDS))
    except OSError as error:
        return Seen(error=f"{address}: {why(error)}")
    answers = []
    try:
        for _ in range(QUESTIONS):
            sent, started = time.time(), time.perf_counter()
            line.send(None)
            theirs = float(line.receive(CONNECT_SECONDS))
            took = time.perf_counter() - started
            answers.append((took, theirs - (sent + took / 2)))
    except (OSError, ValueError, TypeError) as error:
        return Seen(error=f"{address}: {why(error)}")
    finally:
        line.close()
    seconds, ahead = min(answers)
    return Seen(seconds=seconds, ahead=ahead)


def judge_ports(seen: Mapping[str, Mapping[str, Seen]]) -> list[Finding]:
    """Whether every node reaches every other one; seen: by who looks, and at whom."""
    errors = {(one, other): it.error for one, row in seen.items() for other, it in row.items() if it.error}
    if not errors:
        trips = [it.seconds for row in seen.values() for it in row.values() if it.seconds is not None]
        slowest = f"; a round trip takes {1e3 * max(trips):.1f} ms at most" if trips else ""
        return [ok(CHECK, f"every node reaches every other one on any port{slowest}")]
    remedy = "let all ports through between the nodes: collectives take any"
    found = []
    shut = [name for name in seen if all((other, name) in errors for other in seen if other != name)]
    for name in shut:
        whom = next(error for (_, other), error in errors.items() if other == name)
        who = (
            "no other node reaches"
            if len(seen) > 2
            else f"{listed([each for each in seen if each != name])} does not reach"
        )
        found.append(failure(CHECK, f"{who} {name} but at the rendezvous: {whom}", remedy))
    single = [(one, other, error) for (one, other), error in errors.items() if other not in shut]
    for one, other, error in single[:SHOWN]:
        found.append(failure(CHECK, f"{one} does not reach {other} but at the rendezvous: {error}", remedy))
    if len(single) > SHOWN:
        found.append(failure(CHECK, f"{len(single) - SHOWN} more pairs do not reach each other", remedy))
    return found


def judge_clocks(names: list[str], seen: Mapping[str, Mapping[str, Seen]]) -> list[Finding]:
    """Whose clock is wrong; of two nodes the first counts as right, of more the median."""
    first = names[0]
    ahead = {first: 0.0}
    for name in names[1:]:
        known = []
        if (it := seen.get(first, {}).get(name)) and it.ahead is not None:
            known.append(it.ahead)
        if (it := seen.get(name, {}).get(first)) and it.ahead is not None:
            known.append(-it.ahead)
        if known:
            ahead[name] = sum(known) / len(known)
    if len(ahead) < 2:
        return []
    right = 0.0 if len(names) == 2 else median(ahead.values())
    whose = f"that of {first}" if len(names) == 2 else "most"
    found = []
    for name, seconds in ahead.items():
        apart = seconds - right
        if abs(apart) > APART_WARNING:
            what = f"the clock of {name} is {abs(apart):,.1f} s {'ahead of' if apart > 0 else 'behind'} {whose}"
            level = failure if abs(apart) > APART_FAILURE else warning
            found.append(
                level(CLOCKS, what, "start chrony or another NTP client there; torchrun's rendezvous compares times")
            )
    spread = max(ahead.values()) - min(ahead.values())
    return found or [ok(CLOCKS, f"at most {max(spread, 0.001):.3f} s apart")]
