"""`rlhf doctor` on two nodes that are network namespaces, and what can be wrong with one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from debian import require
from network import PORT, Network, Node
from running import ROOT, TINY


@dataclass
class Told:
    """How the command ended on both nodes."""

    codes: list[int]
    verdict: dict[str, Any]  # of the first node
    errors: list[str]

    @property
    def amiss(self) -> list[tuple[str, str, str]]:
        """Check, level and line of all that is not well."""
        found = self.verdict["findings"]
        return [(each["check"], each["level"], each["what"]) for each in found if each["level"] != "ok"]


@dataclass
class Surgery:
    """Two nodes, on which the command is run with something in front of it."""

    net: Network
    folder: Path
    before: dict[int, list[str]] = field(default_factory=lambda: {0: [], 1: []})  # a command that runs ours, by node
    environment: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def packages(self) -> Path:
        """A folder that comes before all others when the second node imports something."""
        folder = self.folder.parent / f"{self.folder.name}-packages"
        folder.mkdir(exist_ok=True)
        self.environment[1] = {"PYTHONPATH": f"{folder}:{ROOT}"}
        return folder

    def examine(self, *options: str, nodes: Sequence[int] = (0, 1), seconds: float = 60) -> Told:
        """Run it on nodes at the same time."""
        running = [self.start(index, self.net.nodes[index], options, seconds) for index in nodes]
        ended = [process.communicate(timeout=180) for process in running]
        verdict = json.loads(ended[0][0] or "{}")
        return Told([process.returncode for process in running], verdict, [errors.decode() for _, errors in ended])

    def start(self, index: int, node: Node, options: Sequence[str], seconds: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "launch.cli", "doctor", str(TINY), "--json", "--nodes", "2"]
        command += ["--rendezvous", f"{self.net.nodes[0].address}:{PORT}", "--wait-seconds", str(seconds), *options]
        own = {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT), **self.environment.get(index, {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.folder}
        return self.net.start(node, [*self.before[index], *command], env={**os.environ, **own}, **pipes)

    def on(self, node: Node, *command: str) -> None:
        """Run something on a node, which must succeed."""
        done = subprocess.run(["ip", "netns", "exec", node.namespace, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@contextmanager
def slow_link(surgery: Surgery) -> Iterator[None]:
    """What the second node sends is held back to 100 Mbit/s."""
    node = surgery.net.nodes[1]
    bucket = ["rate", "100mbit", "burst", "64kb", "latency", "200ms"]
    surgery.on(node, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *bucket)
    try:
        yield
    finally:
        surgery.on(node, "tc", "qdisc", "del", "dev", "eth0", "root")


@contextmanager
def read_only(surgery: Surgery) -> Iterator[None]:
    """The second node sees the folder and may not write there."""
    remounted(surgery, "mount -o bind {0} {0} && mount -o remount,bind,ro {0}")
    yield


@contextmanager
def not_shared(surgery: Surgery) -> Iterator[None]:
    """The second node has another folder at the same place."""
    remounted(surgery, "mount -t tmpfs none {0}")
    yield


def remounted(surgery: Surgery, how: str) -> None:
    """Mount something over the folder, as the second node sees it. how: of {0}, the folder."""
    mount = f"{how} && cd {{0}}".format(surgery.folder)
    surgery.before[1] += ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]


@contextmanager
def other_version(surgery: Surgery) -> Iterator[None]:
    """The second node has another transformers, as far as its metadata say."""
    record = surgery.packages / "transformers-5.17.0.dist-info" / "METADATA"
    record.parent.mkdir()
    record.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.17.0\n")
    yield


@contextmanager
def closed_ports(surgery: Surgery) -> Iterator[None]:
    """The second node lets nobody in, as a firewall that knows the rendezvous alone."""
    with dropped(surgery, surgery.net.nodes[1], "--syn"):
        yield


@contextmanager
def closed_rendezvous(surgery: Surgery) -> Iterator[None]:
    """The first node lets nobody in where they are to meet."""
    with dropped(surgery, surgery.net.nodes[0], "--syn", "--dport", str(PORT)):
        yield


@contextmanager
def dropped(surgery: Surgery, node: Node, *what: str) -> Iterator[None]:
    require("iptables", "iptables")
    rule = ["INPUT", "-i", "eth0", "-p", "tcp", *what, "-j", "DROP"]
    surgery.on(node, "iptables", "-A", *rule)
    try:
        yield
    finally:
        surgery.on(node, "iptables", "-D", *rule)


@contextmanager
def wrong_clock(surgery: Surgery) -> Iterator[None]:
    """The second node's clock is five minutes ahead, the one that tells the time; what measures spans goes right.

    libfaketime 0.9.10 then refuses Python's sleep (EINVAL), which gets another one.
    """
    require("faketime", "faketime")
    sleep = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds)\n"
    (surgery.packages / "sitecustomize.py").write_text(sleep)
    surgery.before[1] += ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", "+300s"]
    yield


FAULTS: Mapping[str, Any] = {
    each.__name__: each
    for each in (slow_link, read_only, not_shared, other_version, closed_ports, closed_rendezvous, wrong_clock)
}


@contextmanager
def with_faults(surgery: Surgery, *names: str) -> Iterator[Surgery]:
    """Several at once."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(FAULTS[name](surgery))
        yield surgery
