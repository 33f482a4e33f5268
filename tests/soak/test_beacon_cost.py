"""What beacons cost a stage: `make soak ARGS="-k beacon_cost -s"`.

First what one beat of the thread takes of a processor, with two real processes and with the files of many ranks, and
what the main thread's own notes take; then PPO with and without a watchdog, turn by turn.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from interruption import own_copy
from running import TINY, rlhf

from launch.local import free_port
from rlhf import beacons
from rlhf.beacons.keeper import Channel, Keeper
from rlhf.beacons.record import read, write
from rlhf.beacons.watchdog import BEAT_SECONDS, Limits, Post
from rlhf.distributed import barrier

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

SHARE = 0.005  # of a step's time, at most
BEATS, ROUNDS, STEPS = 200, 6, 40
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
        for other in range(2, ranks):
            write(folder, replace(first, rank=other))
        assert keeper.watchdog is not None
        keeper.beat()
        assert len(keeper.watchdog.sight.last) == ranks
        started = time.thread_time()
        for _ in range(BEATS):
            keeper.beat()
        (folder / "seconds").write_text(json.dumps((time.thread_time() - started) / BEATS))
    barrier()


@pytest.mark.parametrize("ranks", [2, 64])
def test_beacon_cost_of_a_beat(ranks: int, tmp_path: Path) -> None:
    mp.spawn(beats, args=(free_port(), tmp_path, ranks), nprocs=2)
    seconds = json.loads((tmp_path / "seconds").read_text())
    print(
        f"\n{ranks} ranks: a beat takes {seconds * 1e6:.0f} us of a processor, {seconds / BEAT_SECONDS:.3%} of its time"
    )
    assert ranks > 2 or seconds / BEAT_SECONDS < SHARE


def test_beacon_cost_of_notes() -> None:
    started = time.perf_counter()
    for step in range(10_000):
        with beacons.phase("collect"):
            beacons.at_step(step)
    seconds = (time.perf_counter() - started) / 10_000
    print(f"\na phase takes the main thread {seconds * 1e6:.2f} us; {NOTES_PER_STEP} in a step")
    assert seconds * NOTES_PER_STEP < SHARE * 0.05  # of a step of 50 ms, shorter than any real one


def seconds_of_steps(reference: Path, folder: Path, watchdog: str) -> float:
    """Mean seconds of a step of PPO by two processes, its last ones."""
    run = own_copy(reference, folder, ["sft", "reward"])
    work = (f"ppo.steps={STEPS}", "ppo.prompts_per_step=32", "ppo.evaluate_every=0", "checkpoint.every_steps=null")
    done = rlhf("ppo", str(TINY), *work, "parallelism.processes=2", watchdog, folder=folder, seconds=900)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    steps = [sum(value for name, value in line.items() if name.startswith("perf/seconds_")) for line in lines]
    return mean(steps[STEPS // 4 :])


def test_beacon_cost_by_the_clock(tiny_run: Path, tmp_path: Path) -> None:
    """Runs of the same work differ by more than beacons can cost: what is bounded here is a gross mistake."""
    ratios = []
    for number in range(ROUNDS):
        order = ["watchdog=null", "watchdog={}"][:: 1 if number % 2 else -1]
        found = {each: seconds_of_steps(tiny_run, tmp_path / f"{number}{each[:12]}", each) for each in order}
        ratios.append(found["watchdog={}"] / found["watchdog=null"] - 1)
    error = stdev(ratios) / ROUNDS**0.5
    print(f"\nwith a watchdog a step takes {mean(ratios):+.2%} (standard error {error:.2%}) longer, {ROUNDS} rounds")
    assert mean(ratios) < max(SHARE, 3 * error)
