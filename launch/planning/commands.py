"""The commands that run a recipe on a cluster, as a person would type them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from launch.planning.cluster import Cluster


def commands(recipe: str, name: str, stages: Sequence[str], cluster: Cluster, overrides: Sequence[str]) -> list[str]:
    """One line on one machine; over several a line for each stage, which every node runs, HEAD being one of them."""
    given = [shlex.quote(override) for override in overrides]
    if cluster.nodes == 1:
        return [" ".join(["rlhf", "run", shlex.quote(recipe), *given])]
    options = f"--nnodes {cluster.nodes} --nproc-per-node {cluster.gpus} --rdzv-backend c10d --rdzv-endpoint HEAD:29400"
    return [
        " ".join(
            ["torchrun", options, "--max-restarts 3", f"-m stages.{stage}", f"--recipe {shlex.quote(recipe)}"]
            + [f"--run-dir {shlex.quote(f'runs/{name}')}", *given]
        )
        for stage in stages
    ]
