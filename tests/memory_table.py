"""The table of docs/memory.md, in Markdown: `python tests/memory_table.py`. As `rlhf plan` counts."""

from __future__ import annotations

from launch.planning.cluster import Cluster, cluster, name_of
from launch.planning.needs import Need, cheapest, needs
from launch.proposal.models import weights_of_size
from rlhf.config import Recipe
from rlhf.memory import GIB
from rlhf.shapes import shape_of_size

SIZES = ("0.5B", "1.5B", "8B", "70B")
CLUSTERS = (cluster(1, 1, "80GB"), cluster(1, 8, "80GB"), cluster(4, 8, "80GB"), cluster(16, 8, "80GB"))
RECIPE = Recipe.model_validate(
    {
        "sft": {"batch_size": 512, "micro_batch_size": 1, "max_length": 2048},
        "reward": {"batch_size": 512, "micro_batch_size": 1, "max_length": 2048},
        "ppo": {
            "prompts_per_step": 512,
            "micro_batch_tokens": 2048,
            "generation": {"max_new_tokens": 1024, "batch_size": 64},
        },
    }
)
STAGES = ("sft", "reward", "ppo")


def cell(found: Need | None) -> str:
    """The strategy, GiB at the recipe's micro-batch, and the largest that fits."""
    if found is None:
        return "none"
    again = " \\*" if found.checkpointing else ""
    return f"{name_of(found.way)}{again}: {found.estimate.total / GIB:.1f}; {found.largest:,}"


def row(size: str, machines: Cluster) -> list[str]:
    """One size on some GPUs."""
    shape = shape_of_size(weights_of_size(size))
    return [size, f"{machines.processes}"] + [cell(cheapest(needs(RECIPE, stage, shape, machines))) for stage in STAGES]


def table() -> str:
    """All of it."""
    lines = [["model", "GPUs", *STAGES], ["---"] * 5, *(row(size, each) for size in SIZES for each in CLUSTERS)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
