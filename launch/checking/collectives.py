"""Collectives between all processes of all nodes: `stages.collectives` as child processes, and what its figures say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from launch.checking.finding import Finding, failure, ok, warning, worst
from launch.checking.network import GLOO, interface_of
from launch.local import follow_parent, stage_environment

CHECK = "collectives"
MARK = "collectives: "
START_SECONDS = 90.0  # to load torch, on a file system that many nodes read at once, and to meet
ROUND_SECONDS = 6.0
POLL_SECONDS = 0.1
AFTER_OTHERS_SECONDS = 15.0  # once another node has ended, well or badly
# Of the median of the other pairs. Links of one network differ by little; a port that fell back to a tenth of its
# speed, or a cable with errors, by a factor.
SLOW, VERY_SLOW = 1 / 2, 1 / 10
LEAST = 50e6  # bytes a second between two nodes: less than half of gigabit Ethernet
SHOWN = 6  # slow pairs


def seconds_for(nodes: int, processes: int) -> float:
    """A time by which all is measured, or will not be."""
    return START_SECONDS + ROUND_SECONDS * (nodes + processes + 1)


def environment_of(rank: int, local: int, counts: list[int], node: int, host: tuple[str, int]) -> dict[str, str]:
    """What tells a process who it is, in the variables of torchrun; counts: processes of each node."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(sum(counts)),
        "LOCAL_WORLD_SIZE": str(counts[node]),
        "GROUP_RANK": str(node),
        "MASTER_ADDR": host[0],
        "MASTER_PORT": str(host[1]),
    }


def measure(
    node: int, counts: list[int], host: tuple[str, int], address: str, waited_for: Callable[[], bool]
) -> tuple[dict[str, Any] | None, str | None]:
    """Run this node's processes. The result, which only the first node has, or why there is none.

    waited_for: whether another node has ended.
    """
    seconds = seconds_for(len(counts), max(counts))
    # Of torchrun, should it have started us: its processes would look for a store of its agent's.
    environment = {k: v for k, v in stage_environment(counts[node]).items() if not k.startswith("TORCHELASTIC_")}
    environment["RLHF_COLLECTIVES_MINUTES"] = f"{seconds / 60:.2f}"
    if len(counts) > 1 and GLOO not in os.environ and (name := interface_of(address)):
        environment[GLOO] = name
    command = [sys.executable, "-P", "-m", "stages.collectives"]
    first = sum(counts[:node])
    processes: list[Process] = []
    deadline = time.monotonic() + seconds
    try:
        for local in range(counts[node]):
            own = environment_of(first + local, local, counts, node, host) if sum(counts) > 1 else {"WORLD_SIZE": "1"}
            processes.append(Process(command, {**environment, **own}))
        return wait(processes, deadline, waited_for)
    finally:
        for process in processes:
            process.close()


class Process:
    """One of a node's."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # a pipe that nobody reads would fill up
        options: dict[str, Any] = {"start_new_session": True, "preexec_fn": follow_parent()}
        self.process = subprocess.Popen(command, env=environment, stdout=self.said, stderr=self.errors, **options)

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.wait()
        self.said.close()
        self.errors.close()

    def last_words(self) -> str:
        """The last line that it wrote of what is wrong."""
        if self.process.returncode < 0:
            return f"killed by signal {-self.process.returncode}"
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"


def wait(
    processes: list[Process], deadline: float, waited_for: Callable[[], bool]
) -> tuple[dict[str, Any] | None, str | None]:
    """Wait until all have ended, one has failed, or the time is up; see `measure`."""
    alone = False
    while True:
        if not alone and waited_for():
            alone, deadline = True, min(deadline, time.monotonic() + AFTER_OTHERS_SECONDS)
        codes = [each.process.poll() for each in processes]
        for each, code in zip(processes, codes, strict=True):
            if code:
                return None, each.last_words()
        if None not in codes:
            break
        if time.monotonic() > deadline:
            who = "those of another node, which have ended" if alone else "a word that does not come"
            return None, f"no end in time: its processes wait for {who}"
        time.sleep(POLL_SECONDS)
    said = processes[0].said
    said.seek(0)
    for line in said:
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found, None
    return None, None


def judge(result: Mapping[str, Any], names: Mapping[int, str]) -> list[Finding]:
    """What the figures say; names: of nodes by rank."""
    if result["all_reduce"] is None:
        return [ok(CHECK, f"torch loads, on {result['devices'][0]}; one process has nobody to talk to")]
    nodes: list[int] = result["nodes"]
    between = [pair for pair in result["pairs"] if nodes[pair["between"][0]] != nodes[pair["between"][1]]]
    within = [pair for pair in result["pairs"] if nodes[pair["between"][0]] == nodes[pair["between"][1]]]
    found = slow(between, lambda one, other: f"{names[nodes[one]]} and {names[nodes[other]]}", LEAST)
    local = {rank: rank - nodes.index(nodes[rank]) for rank in range(len(nodes))}
    found += slow(within, lambda one, other: f"processes {local[one]} and {local[other]} of {names[nodes[one]]}", 0.0)
    if not found:
        total = result["all_reduce"]
        parts = [f"all-reduce over {len(nodes)} processes by {result['backend']}: {speed(total)}"]
        for what, group in (("nodes", between), ("processes of a node", within)):
            if group:
                slowest = min(group, key=lambda pair: float(pair["bandwidth"]))
                parts.append(f"pairs of {what}: {speed(slowest)} at least")
        found.append(ok(CHECK, "; ".join(parts)))
    return found


def slow(measured: list[Mapping[str, Any]], named: Callable[[int, int], str], least: float) -> list[Finding]:
    """Pairs that are much slower than the median, or than any network of today."""
    if not measured:
        return []
    usual = median(float(pair["bandwidth"]) for pair in measured)
    found = []
    for pair in sorted(measured, key=lambda each: float(each["bandwidth"])):
        rate = float(pair["bandwidth"])
        if rate >= max(SLOW * usual, least) or (rate >= least and len(measured) < 3):
            continue
        level = failure if rate < max(VERY_SLOW * usual, least / 10) else warning
        beside = ", less than half of gigabit Ethernet" if rate < least else ""
        if len(measured) > 2:
            beside = f", and the median pair {usual / 1e6:,.1f} MB/s"
        remedy = "see its cable, its port's speed (ethtool, ibstat) and what else uses it, or leave the node out"
        found.append(level(CHECK, f"{named(*pair['between'])}: {speed(pair)}{beside}", remedy))
    if len(found) > SHOWN:
        rest = f"{len(found) - SHOWN} more pairs are slow"
        found[SHOWN:] = [Finding(CHECK, worst(found[SHOWN:]), rest)]
    return found


def speed(measured: Mapping[str, Any]) -> str:
    """For people."""
    rate = float(measured["bandwidth"])
    shown = f"{rate / 1e9:,.2f} GB/s" if rate >= 1e9 else f"{rate / 1e6:,.1f} MB/s"
    return f"{shown}, {1e3 * float(measured['seconds']):.2f} ms"
