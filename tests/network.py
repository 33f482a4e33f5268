"""Two nodes on one machine: network namespaces with an address, a cable and a host name each, and torchrun on both.

Their switch stands in a namespace of its own, so that no rule of this machine's firewall and no address of it meets
theirs; removing the three namespaces removes everything. Needs root and iproute2.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from debian import require
from interruption import own_copy, seconds_until
from running import TINY

PORT = 29400
RETRIES = 7  # of TCP, until it gives a connection up: 0.2 s · (2^8 - 1) = 51 s; see docs/hangs.md


@dataclass(frozen=True)
class Node:
    """One of the two."""

    namespace: str
    host: str
    address: str
    port: str  # of the switch


class Network:
    """Two nodes at a switch."""

    def __init__(self) -> None:
        own = f"rlhf-{os.getpid()}"
        self.switch = f"{own}-switch"
        self.nodes = [Node(f"{own}-{n}", f"node-{n}", f"10.77.0.{n}", f"port-{n}") for n in (1, 2)]

    def open(self) -> None:
        """Build it."""
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        for node in self.nodes:
            _ip("netns", "add", node.namespace)
            there = ("peer", "name", "eth0", "netns", node.namespace)
            _ip("-n", self.switch, "link", "add", node.port, "type", "veth", *there)
            _ip("-n", self.switch, "link", "set", node.port, "master", "bridge", "up")
            _ip("-n", node.namespace, "address", "add", f"{node.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", node.namespace, "link", "set", device, "up")
            _ip("netns", "exec", node.namespace, "sh", "-c", f"echo {RETRIES} > /proc/sys/net/ipv4/tcp_retries2")

    def close(self) -> None:
        """End what runs on the nodes, and remove them."""
        for node in self.nodes:
            with suppress(OSError):
                self.kill(node)
        for name in (*(node.namespace for node in self.nodes), self.switch):
            with suppress(OSError):
                _ip("netns", "delete", name)

    def cut(self, node: Node) -> None:
        """Pull a node's cable."""
        _ip("-n", self.switch, "link", "set", node.port, "down")

    def mend(self, node: Node) -> None:
        """Plug it in again."""
        _ip("-n", self.switch, "link", "set", node.port, "up")

    def processes(self, node: Node) -> list[int]:
        """What runs on a node."""
        return [int(pid) for pid in _ip("netns", "pids", node.namespace).split() if _runs(int(pid))]

    def kill(self, node: Node) -> None:
        """SIGKILL to all that runs on a node, until nothing does: a port is free once who held it is gone."""
        deadline = time.monotonic() + 30
        while (left := self.processes(node)) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def start(self, node: Node, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """A command on a node, under its host name."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {node.host} && exec "$@"', "sh"]
        return subprocess.Popen(["ip", "netns", "exec", node.namespace, *named, *command], **options)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _runs(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@pytest.fixture(scope="module", name="net")
def network() -> Iterator[Network]:
    """Two nodes, removed at the end. Fails where there cannot be any."""
    assert os.geteuid() == 0, "network namespaces need root: run this test as root, or leave it out"
    require("iproute2", "ip")
    made = Network()
    try:
        made.open()
        yield made
    finally:
        made.close()


class Stage:
    """PPO on both nodes, a process and a torchrun agent each; the run directory is a folder that both see."""

    def __init__(self, net: Network, reference: Path, folder: Path, settings: Sequence[str], restarts: int = 3) -> None:
        self.net = net
        self.folder = folder
        self.settings = list(settings)
        self.restarts = restarts
        self.stage = own_copy(reference, folder, ["sft", "reward"]) / "ppo"
        self.agents: dict[Node, subprocess.Popen[bytes]] = {}

    def start(self, *nodes: Node) -> None:
        """An agent on each node given, or on both."""
        for node in nodes or self.net.nodes:
            if node in self.agents:  # one that was killed, or has ended
                self.agents[node].wait(30)
            host = self.net.nodes[0]
            conf = f"is_host={str(node == host).lower()},join_timeout=60,read_timeout=20"
            command = [sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
            command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host.address}:{PORT}", "--rdzv-conf", conf]
            command += ["--local-addr", node.address, "--monitor-interval", "0.5"]
            command += ["--max-restarts", str(self.restarts), "-m", "stages.ppo"]
            command += ["--recipe", str(TINY), "--run-dir", "runs/tiny", *self.settings]
            with (self.folder / f"{node.host}.log").open("ab") as log:
                own = {"GLOO_SOCKET_IFNAME": "eth0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONSAFEPATH": "1"}
                options = {"cwd": self.folder, "env": {**os.environ, **own}, "start_new_session": True}
                self.agents[node] = self.net.start(node, command, stdout=log, stderr=log, **options)

    def said(self, *nodes: Node) -> str:
        """What nodes have written to people."""
        logs = [self.folder / f"{node.host}.log" for node in nodes or self.net.nodes]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())

    def step(self) -> int:
        """The last step that stands in the figures."""
        with suppress(OSError, IndexError, ValueError):
            return int(json.loads((self.stage / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        return 0

    def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for something; how long it took."""
        return seconds_until(condition, seconds, self.said)

    def reach(self, step: int) -> None:
        """Wait until a step is made, before the stage has ended."""
        self.until(lambda: self.step() >= step or self.gone(), 180)
        assert self.step() >= step, self.said()

    def gone(self, *nodes: Node) -> bool:
        """Whether nothing runs on nodes any more."""
        return not any(self.net.processes(node) for node in nodes or self.net.nodes)

    def workers(self, node: Node) -> list[int]:
        """The processes of the stage on a node, the agent apart."""
        found = []
        for pid in self.net.processes(node):
            with suppress(psutil.Error):
                if "torch.distributed.run" not in (line := psutil.Process(pid).cmdline()) and "stages.ppo" in line:
                    found.append(pid)
        return found

    def worker(self, node: Node) -> int:
        """The one process of the stage on a node."""
        (pid,) = self.workers(node)
        return pid

    def codes(self) -> list[int]:
        """The agents' exit codes."""
        return [agent.wait(5) for agent in self.agents.values()]
