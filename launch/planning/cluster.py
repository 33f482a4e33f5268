"""The GPUs that a run is planned for, and how a model can be shared out over them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlhf.config import ParallelismConfig
from rlhf.errors import ConfigError
from rlhf.memory import GIB, usable

# What a card is sold with, in GB, is nearly what its driver tells in GiB: 79 to 80 for 80 GB, 22 to 24 for 24 GB.
UNITS = {"gib": 1.0, "g": 1.0, "": 1.0, "gb": 0.98}


@dataclass(frozen=True)
class Cluster:
    """Equal machines with equal GPUs."""

    nodes: int
    gpus: int  # of each node
    memory: float  # bytes of each GPU

    @property
    def processes(self) -> int:
        """One for each GPU."""
        return self.nodes * self.gpus

    @property
    def room(self) -> float:
        """Bytes of a GPU that tensors can fill."""
        return usable(self.memory)

    def __str__(self) -> str:
        """For people."""
        each = f"GPU{'s' if self.processes > 1 else ''} of {self.memory / GIB:.0f} GiB"
        return f"{self.processes} {each}" + (f" on {self.nodes} nodes" if self.nodes > 1 else "")

    def strategies(self, stage: str) -> list[ParallelismConfig]:
        """The ways to share a stage's models out here, those that send least first; evaluation knows one."""
        if self.processes == 1 or stage == "evaluate":
            one = [ParallelismConfig(strategy="ddp", processes=self.processes)]
            if self.processes == 1 and stage != "evaluate":
                one.append(ParallelismConfig(strategy="fsdp", processes=1, cpu_offload=True))
            return one
        ways: list[dict[str, object]] = [{"strategy": name} for name in ("ddp", "zero1", "zero2")]
        if stage == "ppo" and self.nodes > 1 and self.gpus > 1:
            ways.append({"strategy": "fsdp", "shard_over": self.gpus})  # weights gathered within a node
        ways += [{"strategy": "fsdp"}, {"strategy": "zero3"}]
        ways += [{"strategy": name, "cpu_offload": True} for name in ("zero2", "fsdp", "zero3")]
        return [ParallelismConfig.model_validate({**way, "processes": self.processes}) for way in ways]


def cluster(nodes: int, gpus: int, memory: str) -> Cluster:
    """From what somebody types, such as 80GB. Raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", memory.lower())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise ConfigError(f"--gpu-memory={memory}: is no size; use for example 80GB or 79GiB")
    return Cluster(nodes, gpus, float(found[1]) * UNITS[found[2]] * GIB)


def name_of(way: ParallelismConfig) -> str:
    """A way for people."""
    named = way.strategy + (f" over {way.shard_over}" if way.shard_over else "")
    return f"{named}, offloaded" if way.cpu_offload else named
