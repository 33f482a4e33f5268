"""Each fault that a run over ssh comes back from, under torchrun and deepspeed: the undisturbed figures, and how long.

make soak ARGS="-k launch_over_ssh -s"
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cluster import SSHCluster, line_of, ssh_cluster  # noqa: F401  # the fixture `cluster`
from interruption import assert_same, own_copy
from launched import SETTINGS, Launched, undisturbed  # noqa: F401  # the fixture `reference`
from network import network  # noqa: F401  # the fixture `net`
from running import TINY

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
ONLY = ["--from", "ppo", "--until", "ppo"]


def worker_killed(run: Launched) -> None:
    two = run.cluster.net.nodes[1]
    workers = [pid for pid in run.cluster.net.processes(two) if is_worker(pid)]
    os.kill(workers[-1], signal.SIGKILL)


def supervisor_killed(run: Launched) -> None:
    """Alone: what it has started has to end with it, and another supervisor comes."""
    (pid,) = run.cluster.supervisors(run.cluster.net.nodes[1])
    os.kill(pid, signal.SIGKILL)


def second_node_killed(run: Launched) -> None:
    run.cluster.net.kill(run.cluster.net.nodes[1])
    run.cluster.boot(run.cluster.net.nodes[1])


def first_node_killed(run: Launched) -> None:
    run.cluster.net.kill(run.cluster.net.nodes[0])
    run.cluster.boot(run.cluster.net.nodes[0])


def both_killed(run: Launched) -> None:
    for node in run.cluster.net.nodes:
        run.cluster.net.kill(node)
    for node in run.cluster.net.nodes:
        run.cluster.boot(node)
    assert run.states() == {"ppo": "lost"}
    run.resume()


def is_worker(pid: int) -> bool:
    """Whether a process is one of the stage, not what has started it."""
    line = line_of(pid)
    return ("-m", "stages.ppo") in zip(line, line[1:], strict=False) and "torch.distributed.run" not in line


FAULTS: list[Callable[[Launched], None]] = [
    *(worker_killed, supervisor_killed, second_node_killed, first_node_killed, both_killed)
]


@pytest.mark.parametrize("on", ["torchrun", "deepspeed"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_run_comes_back(
    fault: Callable[[Launched], None],
    on: str,
    cluster: SSHCluster,
    tiny_run: Path,
    reference: Path,
    tmp_path: Path,
) -> None:
    own_copy(tiny_run, tmp_path, ["sft", "reward"])
    run = Launched(cluster, on, tmp_path)
    run.launch(TINY, *SETTINGS, *ONLY)
    run.reach(3)
    started = time.monotonic()
    fault(run)
    run.until_next_step()
    print(f"{fault.__name__} under {on}: next step after {time.monotonic() - started:.0f} s", psutil.getloadavg())
    run.until_ended()
    assert run.states() == {"ppo": "complete"}, run.said()
    assert_same(run.run / "ppo", reference)
