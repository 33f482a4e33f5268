"""The schedulers there are, by the name that --on takes; each is loaded when it is asked for."""

from __future__ import annotations

import importlib

from launch.clusters.scheduler import Scheduler
from rlhf.errors import ConfigError

MODULES = {
    "local": "launch.clusters.local",
    "torchrun": "launch.clusters.torchrun",
    "deepspeed": "launch.clusters.deepspeed",
    "slurm": "launch.clusters.slurm",
    "kubernetes": "launch.clusters.kubernetes",
}


def find_scheduler(name: str) -> Scheduler:
    """The `SCHEDULER` of its module. Raises ConfigError for a name that is none."""
    if name not in MODULES:
        raise ConfigError(f"--on={name}: is no scheduler; use one of {', '.join(MODULES)}")
    found: Scheduler = importlib.import_module(MODULES[name]).SCHEDULER
    return found
