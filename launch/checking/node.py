"""One node: all that it tells of itself, and what its own facts say."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from launch.checking import gpus, memory, network, recipe, services, versions
from launch.checking.finding import Facts, Finding
from launch.local import processes_of, visible_gpus
from rlhf.config import Recipe
from stages.lineage import STAGES, used_by


@dataclass(frozen=True)
class Question:
    """What is to be checked."""

    recipe: Recipe | None
    run: Path  # the run directory, which need not be there
    nodes: int = 1
    processes: int | None = None  # of each node; None: as a run would have

    def processes_here(self) -> int:
        """How many processes a run would have on this node."""
        if self.processes is not None:
            return self.processes
        if self.recipe is None or self.nodes > 1 and visible_gpus():
            return max(1, visible_gpus())
        trained = [stage for stage in STAGES if not used_by(self.recipe, stage)]
        wanted = max((processes_of(self.recipe, stage) for stage in trained), default=1)
        return wanted if self.nodes == 1 else max(1, wanted // self.nodes)


class Node(Facts):
    """What a node tells."""

    name: str
    address: str
    processes: int
    recipe: str  # its digest, as it is read there
    versions: versions.Versions
    gpus: gpus.Gpus
    memory: memory.Memory
    interfaces: network.Interfaces
    needed: float | None  # bytes that a process of the run takes
    findings: tuple[Finding, ...]  # of the recipe and of services, which are looked at on the spot

    def own(self, several: bool, asked: Recipe | None) -> list[Finding]:
        """What its facts say."""
        found = versions.judge_one(self.versions, asked)
        torch = self.versions.packages.get("torch")
        found += gpus.judge_one(self.gpus, self.processes, torch, self.versions.cuda)
        fast = bool(self.interfaces.infiniband)
        found += memory.judge(self.memory, self.gpus, self.processes, self.needed, fast)
        if several:
            found += network.judge_one(self.interfaces, self.address)
        return [*found, *self.findings]


def look(question: Question, name: str, address: str) -> Node:
    """This node."""
    cards, processes = gpus.look(), question.processes_here()
    world = processes * question.nodes
    found = services.look(question.recipe)
    needed = None
    if question.recipe is not None:
        gpu = cards.visible > 0
        found = [*recipe.look(question.recipe, question.run, world, gpu), *found]
        needed = memory.needed_by(question.recipe, world, gpu)
    return Node(
        name=name,
        address=address,
        processes=processes,
        recipe=recipe.digest_of(question.recipe),
        versions=versions.look(),
        gpus=cards,
        memory=memory.look(),
        interfaces=network.look(address),
        needed=needed,
        findings=tuple(found),
    )


def own_name() -> str:
    """What this machine calls itself."""
    return socket.gethostname()
