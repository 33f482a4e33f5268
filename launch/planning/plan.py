"""A plan: everything that `rlhf plan` says of a recipe on a cluster, as one object that programs can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.planning.cluster import Cluster, name_of
from launch.planning.commands import commands
from launch.planning.needs import Need, cheapest, needs
from launch.planning.work import batches, disk, operations
from rlhf.config import Recipe
from rlhf.errors import RLHFError
from rlhf.shapes import Shape
from stages.lineage import STAGES, used_by
from stages.preflight import parallelism_fits


@dataclass(frozen=True)
class StagePlan:
    """One stage that computes."""

    batch: Mapping[str, Any]
    needs: Sequence[Need]
    own: Need  # the recipe's way
    operations: float | None  # useful ones; None where nobody knows how many steps it makes
    seconds: float | None  # of computing them at a measured rate

    @property
    def cheapest(self) -> Need | None:
        """Of the ways that fit, that which sends least."""
        return cheapest(list(self.needs))

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        fitting = self.cheapest
        return {
            "batch": dict(self.batch),
            "strategies": [{**each.as_json(), "own": each is self.own} for each in self.needs],
            "cheapest": name_of(fitting.way) if fitting else None,
            "operations": self.operations,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Plan:
    """All of it."""

    shape: Shape
    cluster: Cluster
    stages: Mapping[str, StagePlan]
    disk: Mapping[str, float]
    commands: Sequence[str]
    problems: Sequence[str]  # what the stages would refuse

    def as_json(self) -> dict[str, Any]:
        """For programs; bytes and seconds."""
        return {
            "model": {"weights": self.shape.weights, "layers": self.shape.layers, "hidden": self.shape.hidden},
            "cluster": {
                "nodes": self.cluster.nodes,
                "gpus": self.cluster.gpus,
                "gpu_memory": self.cluster.memory,
                "room": self.cluster.room,
            },
            "stages": {name: stage.as_json() for name, stage in self.stages.items()},
            "disk": dict(self.disk),
            "commands": list(self.commands),
            "problems": list(self.problems),
        }


def plan(
    recipe: Recipe,
    shape: Shape,
    cluster: Cluster,
    *,
    called: str,
    overrides: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
    rate: Mapping[str, float] | None = None,
) -> Plan:
    """Make a plan.

    called: the recipe as typed. counts: examples by kind, where they were read. rate: useful operations a second of one
    GPU by stage, as `rlhf bench` measured them.
    """
    stages: dict[str, StagePlan] = {}
    problems: list[str] = []
    wanted = [stage for stage in STAGES if not used_by(recipe, stage)]
    for stage in wanted:
        try:
            fits_processes(recipe, stage, cluster)
            parallelism_fits(recipe, stage, cluster.processes, gpu=True)
        except RLHFError as error:
            problems += error.problems
        found = needs(recipe, stage, shape, cluster)
        own = next(each for each in found if name_of(each.way) == name_of(recipe.parallelism_of(stage)))
        batch = batches(recipe, stage, shape, cluster, counts or {})
        tokens, measured = batch["tokens"], (rate or {}).get(stage)
        work = None if tokens is None else operations(recipe, stage, shape, tokens)
        seconds = work / (measured * cluster.processes) if work is not None and measured else None
        stages[stage] = StagePlan(batch, found, own, work, seconds)
    typed = commands(called, cluster, overrides)
    return Plan(shape, cluster, stages, disk(recipe, shape), typed, list(dict.fromkeys(problems)))


def fits_processes(recipe: Recipe, stage: str, cluster: Cluster) -> None:
    """Raise RLHFError where a recipe names another number of processes than there are GPUs."""
    wanted = recipe.parallelism_of(stage).processes
    if wanted not in ("auto", cluster.processes):
        raise RLHFError(
            f"{stage}: parallelism.processes={wanted} where there are {cluster.processes} GPUs; use --nodes and --gpus "
            "of as many, or parallelism.processes=auto"
        )
