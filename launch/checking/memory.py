"""Memory of a node: what its control group allows, what a run needs of it and of its GPUs, /dev/shm, locked pages."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

from launch.checking.finding import Facts, Finding, failure, ok, warning
from launch.checking.gpus import Gpus
from rlhf.config import Recipe
from rlhf.errors import RLHFError
from rlhf.memory import GIB, usable
from rlhf.recipe_memory import estimate, read_shape
from rlhf.shapes import shape_of_init
from stages.lineage import STAGES, used_by
from stages.origins import first_model

CHECK = "memory"
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # bytes; version 1 says a number near 2**63 in place of none
MIB = 2**20
# NCCL takes some 10 MiB of shared memory for each pair of GPUs of a node, and containers have 64 MiB unless told.
SHARED_LEAST, SHARED_GOOD = 64 * MIB, GIB


class Memory(Facts):
    """A node's, in bytes."""

    total: int
    available: int
    limit: int | None  # of the control group, the narrowest of those around it
    used: int  # of that limit
    shared: int | None  # size of /dev/shm; None: there is none
    locked: int | None  # that a process may lock; None: all


def look() -> Memory:
    """That of this machine."""
    memory = psutil.virtual_memory()
    limit, used = narrowest(Path("/proc/self/cgroup"), CGROUPS)
    shared = None
    with suppress(OSError):
        status = os.statvfs("/dev/shm")
        shared = status.f_blocks * status.f_frsize
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return Memory(
        total=memory.total,
        available=memory.available,
        limit=limit if limit is not None and limit < memory.total else None,
        used=used,
        shared=shared,
        locked=None if locked == resource.RLIM_INFINITY else locked,
    )


def narrowest(own: Path, root: Path) -> tuple[int | None, int]:
    """The narrowest limit of a process's control groups, version 1 or 2, and what is used of it."""
    found = [limit for limit in limits(own, root) if limit[0] < UNLIMITED]
    return min(found, key=lambda limit: limit[0] - limit[1], default=(None, 0))


def limits(own: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each control group that a process is in."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        place = PurePosixPath(path.lstrip("/"))
        for folder in (place, *place.parents):
            with suppress(OSError, ValueError):  # "max", or none here
                limit, used = (int((base / folder / file).read_text(encoding="utf-8")) for file in files)
                yield limit, used


def judge(node: Memory, gpus: Gpus, processes: int, needed: float | None, fast: bool) -> list[Finding]:
    """What a node's memory says.

    needed: bytes that a process of the run takes, on its GPU or of the machine; fast: the node has InfiniBand.
    """
    found = []
    room = node.limit - node.used if node.limit is not None else node.available
    if needed is not None and gpus.cards:
        smallest = min(card.memory for card in gpus.cards) * MIB
        if smallest and needed > usable(smallest):
            what = f"a process needs {size(needed)}, and a GPU has room for {size(usable(smallest))}"
            found.append(failure(CHECK, what, "rlhf plan RECIPE says which strategy and micro-batch fit"))
    elif needed is not None and needed * processes > room:
        whose = "its control group leaves" if node.limit is not None else "are available"
        what = f"{processes} {'process needs' if processes == 1 else 'processes need'} {size(needed * processes)}"
        remedy = "ask for more memory, or use fewer processes or a smaller micro-batch"
        found.append(warning(CHECK, f"{what}, and {size(room)} {whose}", remedy))
    if processes > 1 and node.shared is not None and node.shared < SHARED_GOOD:
        remedy = "start the container with --shm-size=8g, or mount an emptyDir of medium Memory at /dev/shm"
        level = failure if gpus.cards and node.shared <= SHARED_LEAST else warning
        found.append(level(CHECK, f"/dev/shm has {size(node.shared)} for {processes} processes", remedy))
    if fast and node.locked is not None:
        what = f"a process may lock {size(node.locked)} only, and InfiniBand wants its buffers locked"
        found.append(warning(CHECK, what, "ulimit -l unlimited, in limits.conf or the scheduler's unit"))
    if not found:
        limit = "no limit" if node.limit is None else f"limit {size(node.limit)}"
        shared = "no /dev/shm" if node.shared is None else f"/dev/shm {size(node.shared)}"
        takes = "" if needed is None else f"; a process takes {size(needed)} by arithmetic"
        found.append(ok(CHECK, f"{size(node.total)}, {limit}, {shared}{takes}"))
    return found


def needed_by(recipe: Recipe, processes: int, gpu: bool) -> float | None:
    """Bytes of the largest stage for each of some processes; None where the model's shape is not here to be read."""
    place = first_model(recipe)
    try:
        shape = shape_of_init(recipe.model.init) if place is None else read_shape(place)
        if shape is None:
            return None
        wanted = [stage for stage in STAGES if not used_by(recipe, stage)]
        return max(estimate(settled(recipe, gpu), stage, shape, processes).total for stage in wanted)
    except RLHFError:  # that the recipe's own check tells
        return None


def settled(recipe: Recipe, gpu: bool) -> Recipe:
    """A recipe without `auto`, so that it takes least."""
    dtype = recipe.model.dtype if recipe.model.dtype != "auto" else "bfloat16" if gpu else "float32"
    again = recipe.model.activation_checkpointing
    model = {"dtype": dtype, "activation_checkpointing": gpu if again == "auto" else again}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})


def size(memory: float) -> str:
    """Bytes for people."""
    return (
        f"{memory / GIB:.0f} GiB"
        if memory >= 10 * GIB
        else f"{memory / GIB:.1f} GiB"
        if memory >= GIB
        else f"{memory / MIB:.0f} MiB"
    )
