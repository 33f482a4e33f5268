"""How fast collectives are: all-reduce over all processes, and exchanges between all pairs. `rlhf doctor` starts it.

    torchrun --nnodes 2 --nproc-per-node 8 ... -m stages.collectives

Over NCCL where there are GPUs, over gloo elsewhere. Pairs are those of nodes, by one process each, and those of the
processes within each node; in every round each of them has one partner at most, so that no two pairs share a cable.
Bandwidth is that of the bus, as nccl-tests has it: of all-reduce 2 (n - 1) / n times the bytes over the time, which a
link's own speed bounds whatever n is; of a pair the bytes of one direction.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.distributed import barrier, device, gather_objects, is_main, process_group, rank, world_size

MARK = "collectives: "  # before the result, among what libraries print
SMALL = 8  # bytes, of which latency is measured
TURNS = 20
FIRST_BYTES = 2**20
LARGEST_BYTES = {"cpu": 2**26, "cuda": 2**28}
LONG_SECONDS = 0.1  # that one transfer takes at least, unless it is the largest
BEST_OF = 3
MINUTES = "RLHF_COLLECTIVES_MINUTES"  # until a collective is given up


@dataclass(frozen=True)
class Speed:
    """Of one collective."""

    seconds: float  # of a small one
    bandwidth: float  # bytes a second
    size: int  # bytes that it was measured with


def rounds(members: int) -> list[list[tuple[int, int]]]:
    """All pairs of some members in as few rounds as there can be, each member once a round at most.

    The circle method: one stays, the others move on by one place each round. Of an odd number one rests.
    """
    circle: list[int | None] = list(range(members))
    if members % 2:
        circle.append(None)
    found = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        opposite = zip(circle[:half], reversed(circle[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in opposite if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def measured(transfer: Callable[[Tensor], object], agree: Callable[[float], float]) -> Speed:
    """Time a transfer: small ones, then larger and larger ones until one takes long enough.

    agree: the slowest time of all who take part, so that they stop at the same size.
    """

    def timed(content: Tensor) -> float:
        synchronize()
        started = time.perf_counter()
        transfer(content)
        synchronize()
        return time.perf_counter() - started

    tiny = torch.zeros(SMALL // 4, device=device())
    agree(timed(tiny))  # connections are made by the first
    latency = median(timed(tiny) for _ in range(TURNS))
    size = FIRST_BYTES
    while True:
        content = torch.zeros(size // 4, device=device())
        seconds = agree(timed(content))
        if seconds >= LONG_SECONDS or size >= LARGEST_BYTES[device().type]:
            break
        size *= 4
    if seconds < 10 * LONG_SECONDS:  # of a link that slow one is enough
        seconds = min(seconds, *(agree(timed(content)) for _ in range(BEST_OF)))
    return Speed(agree(latency), size / seconds, size)


def synchronize() -> None:
    """Wait for the device."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def exchange(partner: int, content: Tensor) -> Tensor:
    """Give a partner as much as it gives us, at the same time; what it gave."""
    given = torch.empty_like(content)
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, content, partner), dist.P2POp(dist.irecv, given, partner)]
    ):
        work.wait()
    return given


def with_partner(partner: int) -> Speed:
    """Of this process and another one, which calls this with us."""

    def slower(seconds: float) -> float:
        mine = torch.tensor([seconds], device=device(), dtype=torch.float32)
        return max(float(mine), float(exchange(partner, mine)))

    return measured(lambda content: exchange(partner, content), slower)


def with_all() -> Speed:
    """All-reduce over all processes."""

    def slowest(seconds: float) -> float:
        mine = torch.tensor([seconds], device=device(), dtype=torch.float32)
        dist.all_reduce(mine, op=dist.ReduceOp.MAX)
        return float(mine)

    speed = measured(dist.all_reduce, slowest)
    return Speed(speed.seconds, speed.bandwidth * 2 * (world_size() - 1) / world_size(), speed.size)


def pairs(nodes: list[int]) -> dict[tuple[int, int], Speed]:
    """Of this process and each of its partners, keyed by the lower rank first; nodes: of each rank its node."""
    leaders = [nodes.index(node) for node in dict.fromkeys(nodes)]
    own = [other for other, node in enumerate(nodes) if node == nodes[rank()]]
    found = {}
    for members in (leaders, own):  # of the second kind all nodes do theirs at once
        if rank() in members:
            for together in rounds(len(members)):
                for one, other in ((members[a], members[b]) for a, b in together):
                    if rank() in (one, other):
                        found[one, other] = with_partner(other if rank() == one else one)
        barrier()
    return found


def main() -> None:
    """Measure, and print the result on the first process."""
    with process_group(float(os.environ.get(MINUTES, "5"))):
        nodes = gather_objects(int(os.environ.get("GROUP_RANK", "0")))
        several = world_size() > 1
        total = with_all() if several else None
        own = pairs(nodes) if several else {}
        told = gather_objects([{"between": pair, **asdict(speed)} for pair, speed in own.items() if pair[0] == rank()])
        devices = gather_objects(str(device()))
        if is_main():
            result: dict[str, Any] = {
                "backend": "nccl" if device().type == "cuda" else "gloo",
                "nodes": nodes,
                "devices": devices,
                "all_reduce": asdict(total) if total else None,
                "pairs": [pair for each in told for pair in each],
            }
            print(MARK + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
