"""The command that runs a recipe on a cluster, as a person would type it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from launch.planning.cluster import Cluster


def commands(recipe: str, cluster: Cluster, overrides: Sequence[str]) -> list[str]:
    """`rlhf run` on one machine; over several `rlhf launch`, HOSTS being a file with a line for each."""
    given = [shlex.quote(override) for override in overrides]
    if cluster.nodes == 1:
        return [" ".join(["rlhf", "run", shlex.quote(recipe), *given])]
    where = f"--on torchrun --hosts HOSTS --nodes {cluster.nodes} --gpus {cluster.gpus}"
    return [" ".join(["rlhf", "launch", shlex.quote(recipe), *given, where])]
