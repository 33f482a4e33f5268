"""GPUs: there, healthy, free, alike on all nodes, enough for the processes, and with a driver that torch can use."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping

from packaging.version import InvalidVersion, Version

from launch.checking.finding import Facts, Finding, failure, listed, ok, warning
from launch.local import visible_gpus
from rlhf.memory import GIB

CHECK = "gpus"
PLAIN = ("index", "name", "driver_version", "memory.total", "memory.used")
# Not every driver and card answers these.
HEALTH = (
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown",
)
SECONDS = 30.0  # until nvidia-smi has answered: a card that has fallen off the bus keeps it waiting
USED_MIB = 1024  # of a card that somebody computes on; drivers and displays take less
# Of CUDA by major version the oldest driver that runs it (CUDA release notes, table "minimum required driver").
OLDEST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}


class Gpu(Facts):
    """One card, as nvidia-smi tells it."""

    index: int
    name: str
    driver: str
    memory: int  # MiB
    used: int  # MiB
    uncorrected: int = 0  # errors of its memory since the driver was loaded
    slowed: tuple[str, ...] = ()  # by what, now


class Gpus(Facts):
    """All of a node."""

    cards: tuple[Gpu, ...]
    visible: int  # that a process would see
    silent: str | None = None  # what nvidia-smi said in place of an answer


def look() -> Gpus:
    """Those of this machine."""
    if shutil.which("nvidia-smi") is None:
        return Gpus(cards=(), visible=visible_gpus())
    try:
        for fields in ((*PLAIN, *HEALTH), PLAIN):
            query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
            done = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=False)
            if done.returncode == 0:
                return Gpus(cards=parse(done.stdout), visible=visible_gpus())
    except (OSError, subprocess.TimeoutExpired) as error:
        return Gpus(cards=(), visible=0, silent=f"no answer ({type(error).__name__})")
    said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
    return Gpus(cards=(), visible=0, silent=said[-1])


def parse(answer: str) -> tuple[Gpu, ...]:
    """The cards in an answer of nvidia-smi, with or without what it says of their health."""
    cards = []
    for line in filter(None, map(str.strip, answer.splitlines())):
        index, name, driver, memory, used, *health = (part.strip() for part in line.split(","))
        errors, *slowdowns = health or ("0",)
        slowed = [what for what, state in zip(("heat", "power"), slowdowns, strict=False) if state == "Active"]
        cards.append(
            Gpu(
                index=int(index),
                name=name,
                driver=driver,
                memory=int(memory) if memory.isdigit() else 0,  # [N/A] where it is the machine's own
                used=int(used) if used.isdigit() else 0,
                uncorrected=int(errors) if errors.isdigit() else 0,
                slowed=tuple(slowed),
            )
        )
    return tuple(cards)


def judge_one(node: Gpus, processes: int, torch: str | None, cuda: str | None) -> list[Finding]:
    """What a node's GPUs say; torch, cuda: its version and what it was built for."""
    found = []
    if node.silent:
        found.append(failure(CHECK, f"nvidia-smi: {node.silent}", "mend the driver, or reboot the node"))
    for card in node.cards:
        who = f"GPU {card.index} ({card.name})"
        if card.uncorrected:
            what = f"{who}: {card.uncorrected} uncorrected errors of its memory"
            found.append(failure(CHECK, what, "reset it (nvidia-smi -r) or leave the node out"))
        if card.slowed:
            found.append(
                warning(CHECK, f"{who}: slowed down by {listed(card.slowed)}", "see to its cooling and supply")
            )
        if card.used > USED_MIB:
            what = f"{who}: {card.used:,} of {card.memory:,} MiB are taken"
            found.append(warning(CHECK, what, "nvidia-smi names the process; end it, or wait"))
    if node.visible and processes > node.visible:
        what = f"{processes} processes for {node.visible} GPU{'s' if node.visible > 1 else ''}"
        found.append(failure(CHECK, what, f"use --processes {node.visible}, as a run would parallelism.processes"))
    if node.cards and node.visible < len(node.cards):
        what = f"{node.visible} of {len(node.cards)} GPUs are visible"
        found.append(warning(CHECK, what, "see CUDA_VISIBLE_DEVICES and what the scheduler was asked for"))
    if node.cards and torch and cuda is None:
        what = f"torch {torch} was built without CUDA, so that the GPUs are not used"
        found.append(failure(CHECK, what, "install a CUDA build: docs/install.md"))
    if node.cards and cuda and (old := too_old(node.cards[0].driver, cuda)):
        found.append(failure(CHECK, f"driver {node.cards[0].driver} does not run CUDA {cuda} of torch {torch}", old))
    if not found:
        found.append(ok(CHECK, described(node)))
    return found


def too_old(driver: str, cuda: str) -> str | None:
    """What to do where a driver is older than what a CUDA needs."""
    oldest = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    try:
        if oldest and Version(driver) < Version(oldest):
            return f"install driver {oldest} or later, or a torch for an older CUDA"
    except InvalidVersion:
        return None
    return None


def described(node: Gpus) -> str:
    """A node's GPUs for people."""
    if not node.cards:
        return "none: stages compute on the processor"
    kinds = Counter(f"{card.name} of {card.memory * 2**20 / GIB:.0f} GiB" for card in node.cards)
    return f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}, driver {node.cards[0].driver}"


def judge_all(nodes: Mapping[str, Gpus]) -> list[Finding]:
    """Where nodes differ: the slowest card sets the pace, and a driver of its own is a fault of its own."""
    found = []
    if len(described_by := {name: described(node) for name, node in nodes.items()}) > 1:
        usual = Counter(described_by.values()).most_common(1)[0][0]
        for name, what in described_by.items():
            if what != usual:
                found.append(warning(CHECK, f"{name}: {what}; elsewhere {usual}", "use nodes that are alike"))
    return found
