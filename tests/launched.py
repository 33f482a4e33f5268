"""A run that was launched over two nodes, as somebody who has launched it sees it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cluster import SSHCluster
from interruption import EVERY_STEP, own_copy, seconds_until
from running import TINY, rlhf

from launch.clusters.records import Records

STEPS = 60  # so many that it has not ended before somebody has typed a command or two
SETTINGS = ["ppo.parallelism={strategy: ddp, processes: 2}", f"ppo.steps={STEPS}", EVERY_STEP]
AGAIN_SECONDS = 240.0  # until a node is missed, started again, and its stage has loaded; on a busy machine


@pytest.fixture(scope="module", name="reference")
def undisturbed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PPO of these settings by two processes of this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    copy = own_copy(tiny_run, folder, ["sft", "reward"])
    done = rlhf("ppo", str(TINY), *SETTINGS, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "ppo"


class Launched:
    """Of the tiny recipe."""

    def __init__(self, cluster: SSHCluster, on: str, folder: Path) -> None:
        self.cluster = cluster
        self.on = on
        self.folder = folder
        self.run = folder / "runs" / "tiny"

    def launch(self, recipe: Path, *options: str) -> None:
        done = self.cluster.launch(recipe, self.on, self.folder, *options)
        assert done.returncode == 0, done.stdout + done.stderr

    def refused(self, recipe: Path, *options: str) -> str:
        """What is said where nothing is launched."""
        done = self.cluster.launch(recipe, self.on, self.folder, *options)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stderr

    def resume(self) -> None:
        done = self.cluster.rlhf("resume", "tiny", folder=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def cancel(self) -> str:
        """From a machine that is none of the nodes."""
        done = rlhf("cancel", "tiny", folder=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        done = rlhf("status", "tiny", "--json", folder=self.folder)
        assert done.returncode in (0, 1), done.stderr
        return {each["stage"]: each["state"] for each in json.loads(done.stdout)["states"]}

    def logs(self, *arguments: str) -> str:
        done = rlhf("logs", "tiny", *arguments, folder=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def step(self) -> int:
        """The last step of PPO that stands in the figures."""
        with suppress(OSError, IndexError, ValueError):
            return int(json.loads((self.run / "ppo" / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        return 0

    def reach(self, step: int) -> None:
        seconds_until(lambda: self.step() >= step, AGAIN_SECONDS, self.said)

    def until_next_step(self) -> float:
        """Wait for a step that nobody had made when this was asked; how long it took."""
        time.sleep(1)
        before = self.step()
        return seconds_until(lambda: self.step() > before, AGAIN_SECONDS, self.said)

    def until_ended(self) -> None:
        """Wait for the run's end, whichever, and for its supervisors."""
        ended = lambda: Records(self.run).order().do == "end" and not self.processes()  # noqa: E731
        seconds_until(ended, 2 * AGAIN_SECONDS, self.said)

    def processes(self) -> list[int]:
        """What of the run is left on the nodes."""
        return [pid for node in self.cluster.net.nodes for pid in self.cluster.supervisors(node)]

    def said(self) -> str:
        return self.cluster.said(self.run)
