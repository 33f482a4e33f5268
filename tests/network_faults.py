"""What can happen to two nodes and what is between them: each case does it, and says how long what followed took."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from interruption import EVERY_STEP, assert_same, own_copy
from network import Network, Stage
from running import TINY, rlhf

SETTINGS = ["ppo.steps=12", EVERY_STEP]
IMPATIENT = "watchdog={warn_seconds: 5, abort_seconds: 20}"
AT = 3  # the step behind which something happens
NAMED_SECONDS = 15.0  # warn_seconds, the three until a beacon tells it, and a busy machine
VERDICT_SECONDS = 30.0  # abort_seconds and as much
GONE_SECONDS = 150.0  # until TCP gives up, and a rendezvous that nobody joins
SURVIVOR_SECONDS = 60.0  # until whom the rendezvous has left has ended
AGAIN_SECONDS = 180.0  # loading included, on a busy machine

Times = dict[str, float]


def settings(strategy: str) -> list[str]:
    """What the stage on two nodes and the one on this machine have in common."""
    return [f"ppo.parallelism={{strategy: {strategy}, processes: 2}}", *SETTINGS]


def undisturbed(inputs: Path, folder: Path, strategy: str) -> Path:
    """The same stage by `rlhf` on this machine: two processes, no agent and no fault."""
    copy = own_copy(inputs, folder, ["sft", "reward"])
    done = rlhf("ppo", str(TINY), *settings(strategy), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "ppo"


def nothing(stage: Stage) -> Times:
    stage.start()
    return {}


def worker_killed(stage: Stage) -> Times:
    """The process of the second node by SIGKILL."""
    begin(stage)
    os.kill(stage.worker(stage.net.nodes[1]), signal.SIGKILL)
    return {"next step": next_step(stage)}


def node_killed(stage: Stage) -> Times:
    """All that runs on the second node, which then comes back."""
    begin(stage)
    stage.net.kill(stage.net.nodes[1])
    stage.start(stage.net.nodes[1])
    return {"next step": next_step(stage)}


def cable_out_for_seconds(stage: Stage) -> Times:
    begin(stage)
    stage.net.cut(stage.net.nodes[1])
    before = stage.step()
    time.sleep(5)
    assert stage.step() <= before + 1, "nothing was cut"
    stage.net.mend(stage.net.nodes[1])
    times = {"next step": next_step(stage)}
    stage.until(stage.gone, AGAIN_SECONDS)
    assert "going on from" not in stage.said()
    return times


def cable_out(stage: Stage) -> Times:
    """For good: named, ended on both nodes, and gone on from when it is mended."""
    begin(stage)
    one, two = stage.net.nodes
    stage.net.cut(two)
    started = time.monotonic()
    stage.until(lambda: "ppo: warning: all 2 ranks " in stage.said(), NAMED_SECONDS)
    times = {"named": time.monotonic() - started}
    (line,) = re.findall(r"ppo: warning: (all 2 ranks .*look at the network.*)", stage.said())
    stage.until((stage.stage / "hang").is_dir, VERDICT_SECONDS)
    times["verdict"] = time.monotonic() - started
    for node in (one, two):
        stage.until(lambda node=node: not stage.workers(node), 10)
    times["processes gone"] = time.monotonic() - started
    stage.until(lambda: stage.gone(one) or stage.gone(two), GONE_SECONDS)
    times["first agent gone"] = time.monotonic() - started
    stage.until(stage.gone, GONE_SECONDS)
    times["all gone"] = time.monotonic() - started
    assert all(stage.codes()), stage.codes()
    told = rlhf("doctor", "tiny", folder=stage.folder)
    assert told.returncode == 1 and "look at the network" in " ".join(told.stdout.split()), told.stdout
    print(line)
    stage.net.mend(two)
    return times | again(stage)


def host_killed(stage: Stage) -> Times:
    """All that runs on the node where the rendezvous is; the other ends by itself."""
    begin(stage)
    stage.net.kill(stage.net.nodes[0])
    times = {"all gone": stage.until(stage.gone, SURVIVOR_SECONDS)}
    assert all(stage.codes()), stage.codes()
    return times | again(stage)


CASES: dict[str, Callable[[Stage], Times]] = {
    case.__name__: case for case in (nothing, worker_killed, node_killed, cable_out_for_seconds, cable_out, host_killed)
}


def begin(stage: Stage) -> None:
    stage.start()
    stage.reach(AT)


def next_step(stage: Stage) -> float:
    """Seconds until a step is made that was not there a second ago."""
    time.sleep(1)  # a line of figures may be on its way
    before = stage.step()
    return 1 + stage.until(lambda: stage.step() > before, AGAIN_SECONDS)


def again(stage: Stage) -> Times:
    """The same commands on both nodes."""
    before = stage.step()
    stage.start()
    return {"next step, from the command": stage.until(lambda: stage.step() > before, AGAIN_SECONDS)}


def carried_out(case: str, net: Network, inputs: Path, folder: Path, reference: Path, strategy: str = "ddp") -> Times:
    """One case, up to the figures of the run that nobody disturbed."""
    stage = Stage(net, inputs, folder, [*settings(strategy), IMPATIENT])
    times = CASES[case](stage)
    stage.until(stage.gone, AGAIN_SECONDS)
    assert stage.codes() == [0, 0], stage.said()
    assert_same(stage.stage, reference)
    resumed = stage.said().count("going on from")
    assert resumed == (0 if case in ("nothing", "cable_out_for_seconds") else 1), stage.said()
    return times
