"""The devices that a recipe is written for: those of this machine, or those that somebody names."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil

from launch.local import visible_gpus
from rlhf.errors import ConfigError
from rlhf.memory import GIB

MIB = 2**20


@dataclass(frozen=True)
class Hardware:
    """What a run will have."""

    gpus: int  # 0: the processor alone
    memory: float  # bytes, of each GPU or of the machine

    @property
    def processes(self) -> int:
        """How many processes a stage gets."""
        return max(1, self.gpus)

    def __str__(self) -> str:
        """For people."""
        size = f"{self.memory / GIB:.0f} GiB"
        if not self.gpus:
            return f"a processor with {size} of memory"
        return f"1 GPU of {size}" if self.gpus == 1 else f"{self.gpus} GPUs of {size} each"


def hardware(gpus: int | None, gpu_memory: float | None) -> Hardware:
    """The devices as wished for, and else as this machine has them.

    gpu_memory: GiB of each GPU. Raises ConfigError for GPUs whose memory nobody knows.
    """
    seen = gpu_memories()
    count = len(seen) if gpus is None else gpus
    if gpu_memory is not None and gpus is None and not seen:
        count = 1 if gpu_memory else 0
    if count == 0 or gpu_memory == 0:
        return Hardware(0, psutil.virtual_memory().total)
    if gpu_memory is None and not seen:
        raise ConfigError(f"--gpus={count}: none is seen here, so their memory is unknown; give --gpu-memory in GiB")
    return Hardware(count, gpu_memory * GIB if gpu_memory is not None else min(seen))


def gpu_memories() -> list[float]:
    """Bytes of each GPU that a stage would see, as nvidia-smi tells it; empty on a machine without."""
    count = visible_gpus()
    if not count or shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    memories = [float(size) * MIB for size in told if size.replace(".", "", 1).isdigit()]
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if listed and all(name.strip().isdigit() and int(name) < len(memories) for name in listed):
        return [memories[int(name)] for name in listed]
    return memories[:count]
