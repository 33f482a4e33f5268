"""Memory of each stage under each way to share its models out, and the largest micro-batch that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from launch.planning.cluster import Cluster, name_of
from rlhf.config import ParallelismConfig, Recipe
from rlhf.errors import RLHFError
from rlhf.memory import Estimate
from rlhf.recipe_memory import estimate
from rlhf.shapes import Shape
from stages.preflight import parallelism_fits

FIELDS = {"sft": "micro_batch_size", "reward": "micro_batch_size", "ppo": "micro_batch_tokens"}
MOST_TOKENS = 65_536  # of a forward: beyond it nothing gets faster


@dataclass(frozen=True)
class Need:
    """What one process of a stage holds under one way."""

    way: ParallelismConfig
    checkpointing: bool  # activations are computed again
    estimate: Estimate
    fits: bool
    refused: str | None  # why the stage would not start so
    largest: int | None  # of the stage's micro-batch, in `FIELDS`; None: not even the smallest fits

    def as_json(self) -> dict[str, Any]:
        """For programs; bytes."""
        return {
            "strategy": self.way.strategy,
            "shard_over": self.way.shard_over,
            "cpu_offload": self.way.cpu_offload,
            "activation_checkpointing": self.checkpointing,
            "phases": {phase: self.estimate.during(phase) for phase in self.estimate.passing},
            "standing": self.estimate.stands,
            "peak": self.estimate.peak,
            "total": self.estimate.total,
            "fits": self.fits,
            "refused": self.refused,
            "largest_micro_batch": self.largest,
        }


def needs(recipe: Recipe, stage: str, shape: Shape, cluster: Cluster) -> list[Need]:
    """All ways, those that send least first; the recipe's own last if it is none of them."""
    own = recipe.parallelism_of(stage)
    ways = cluster.strategies(stage)
    if name_of(own) not in map(name_of, ways):
        ways.append(own)
    return [need(recipe, stage, shape, cluster, way) for way in ways]


def need(recipe: Recipe, stage: str, shape: Shape, cluster: Cluster, way: ParallelismConfig) -> Need:
    """One way. `auto` is settled as on a GPU of compute capability 8.0 or more."""
    tried = with_way(recipe, stage, way)
    auto = recipe.model.activation_checkpointing == "auto"
    settled = settle(tried, checkpointing=False if auto else bool(recipe.model.activation_checkpointing))
    found = estimate(settled, stage, shape, cluster.processes)
    if auto and found.total > cluster.room:
        settled = settle(tried, checkpointing=True)
        found = estimate(settled, stage, shape, cluster.processes)
    return Need(
        way,
        settled.model.activation_checkpointing is True,
        found,
        found.total <= cluster.room,
        refusal(tried, stage, cluster),
        largest(settled, stage, shape, cluster),
    )


def refusal(recipe: Recipe, stage: str, cluster: Cluster) -> str | None:
    """What the stage would say of its settings."""
    try:
        parallelism_fits(recipe, stage, cluster.processes, gpu=True)
    except RLHFError as error:
        return error.problems[0]
    return None


def cheapest(found: list[Need]) -> Need | None:
    """The first that fits and is not refused: they are in the order of what they send, a recipe's odd one behind."""
    return next((each for each in found if each.fits and not each.refused), None)


def largest(recipe: Recipe, stage: str, shape: Shape, cluster: Cluster) -> int | None:
    """The largest micro-batch that fits: examples, pairs, or tokens of a forward of PPO."""
    if stage not in FIELDS:
        return None

    def total(size: int) -> float:
        section = getattr(recipe, stage).model_copy(update={FIELDS[stage]: size})
        return estimate(recipe.model_copy(update={stage: section}), stage, shape, cluster.processes).total

    return _last(candidates(recipe, stage, cluster), lambda size: total(size) <= cluster.room)


def candidates(recipe: Recipe, stage: str, cluster: Cluster) -> Iterator[int]:
    """Sizes worth a try, ascending: divisors of a process's share; of PPO the longest row and its doubles."""
    if stage == "ppo":
        size = 2 * recipe.ppo.generation.max_new_tokens
        while size <= MOST_TOKENS:
            yield size
            size *= 2
        return
    share = max(1, getattr(recipe, stage).batch_size // cluster.processes)
    yield from (size for size in range(1, share + 1) if share % size == 0)


def _last(sizes: Iterator[int], fits: Callable[[int], bool]) -> int | None:
    found = None
    for size in sizes:
        if not fits(size):
            break
        found = size
    return found


def with_way(recipe: Recipe, stage: str, way: ParallelismConfig) -> Recipe:
    """A recipe whose stage shares its models out in a way."""
    section = getattr(recipe, stage).model_copy(update={"parallelism": way})
    return recipe.model_copy(update={stage: section})


def settle(recipe: Recipe, checkpointing: bool) -> Recipe:
    """A recipe without `auto`, as a GPU has it."""
    dtype = "bfloat16" if recipe.model.dtype == "auto" else recipe.model.dtype
    model = recipe.model.model_copy(update={"dtype": dtype, "activation_checkpointing": checkpointing})
    return recipe.model_copy(update={"model": model})
