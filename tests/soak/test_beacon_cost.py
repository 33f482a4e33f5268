"""What beacons cost a stage: `make soak ARGS="-k beacon_cost -s"`.

First what one beat of the thread takes of a processor, with two real processes and with the files of many ranks, and
what the main thread's own notes take; then steps with a beacon and without, turn by turn.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from launch.local import free_port
from rlhf import beacons
from rlhf.beacons.keeper import Channel, Keeper
from rlhf.beacons.record import read, write
from rlhf.beacons.watchdog import BEAT_SECONDS, Limits, Post
from rlhf.distributed import barrier, global_max

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

SHARE = 0.005  # of a step's time, at most
BEATS, ROUNDS, STEPS = 200, 8, 400
NOTES_PER_STEP = 8  # phases, steps and waits that a step of PPO announces


def beats(rank: int, port: int, folder: Path, ranks: int) -> None:
    """What one beat takes of a processor in one of two real processes, with files of so many ranks."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    post = Post("ppo", folder, folder, "e", rank, ranks)
    keeper = Keeper(post, Limits(20, 300), Channel(print, print))
    keeper.renew()
    barrier()
    if rank == 0:
        first = read(folder, 0)
        assert first is not None
        assert keeper.watchdog is not None
        taken = 0.0
        for number in range(1, BEATS + 1):
            for other in range(1, ranks):  # none falls silent, however long this takes
                write(folder, replace(first, rank=other, count=first.count + number))
            started = time.thread_time()
            keeper.beat()
            taken += time.thread_time() - started
        assert len(keeper.watchdog.sight.last) == ranks
        (folder / "seconds").write_text(json.dumps(taken / BEATS))
    barrier()


@pytest.mark.parametrize("ranks", [2, 64])
def test_beacon_cost_of_a_beat(ranks: int, tmp_path: Path) -> None:
    mp.spawn(beats, args=(free_port(), tmp_path, ranks), nprocs=2)
    seconds = json.loads((tmp_path / "seconds").read_text())
    print(
        f"\n{ranks} ranks: a beat takes {seconds * 1e6:.0f} us of a processor, {seconds / BEAT_SECONDS:.3%} of its time"
    )
    assert seconds / BEAT_SECONDS < SHARE


def test_beacon_cost_of_notes() -> None:
    started = time.perf_counter()
    for step in range(10_000):
        with beacons.phase("collect"):
            beacons.at_step(step)
    seconds = (time.perf_counter() - started) / 10_000
    print(f"\na phase takes the main thread {seconds * 1e6:.2f} us; {NOTES_PER_STEP} in a step")
    assert seconds * NOTES_PER_STEP < SHARE * 0.05  # of a step of 50 ms, shorter than any real one


def turns(rank: int, port: int, folder: Path) -> None:
    """Steps of a small model by one of two real processes, with a beacon and without, turn by turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
    ratios = []
    for number in range(ROUNDS):
        found = {}
        for watched in ((True, False), (False, True))[number % 2]:
            keeper = Keeper(Post("ppo", folder, folder, f"{number}", rank, 2), Limits(20, 300), Channel(print, print))
            if watched:
                keeper.start()
            started, steps = time.process_time(), 0
            while steps < STEPS:
                model(torch.ones(64, 256)).sum().backward()
                global_max(steps)
                steps += 1
            found[watched] = time.process_time() - started
            keeper.end("complete")
            barrier()
        ratios.append(found[True] / found[False] - 1)
    if rank == 0:
        (folder / "ratios").write_text(json.dumps(ratios))


def test_beacon_cost_turn_by_turn(tmp_path: Path) -> None:
    """Time of a processor, all threads together, so that what else the machine does matters little."""
    mp.spawn(turns, args=(free_port(), tmp_path), nprocs=2)
    ratios = json.loads((tmp_path / "ratios").read_text())
    error = stdev(ratios) / ROUNDS**0.5
    print(
        f"\nwith a beacon {STEPS} steps take {mean(ratios):+.2%} (standard error {error:.2%}) longer, {ROUNDS} rounds"
    )
    assert mean(ratios) - 2 * error < SHARE  # else it is more, however noisy the machine
    if 2 * error > SHARE:
        pytest.skip(f"too much else runs here to tell {SHARE:.1%}: the standard error is {error:.2%}")
    assert mean(ratios) < SHARE
