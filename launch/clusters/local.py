"""This machine: the chain as `rlhf run` has it, in a session of its own, so that it outlives the terminal.

    python -P -m launch.clusters.local --run RUN RECIPE ...

runs `rlhf run RECIPE ...` and leaves its exit code in RUN/launch/ended.json.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from launch.clusters.job import RESUMABLE_CODES, RunSpec
from launch.clusters.logs import Source, read_logs
from launch.clusters.scheduler import Rendered, StageState, Submission
from launch.clusters.site import Site
from launch.clusters.submission import FOLDER, LOGS
from launch.local import gpus_here, visible_gpus
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from rlhf.store.artifact import write_json
from rlhf.store.unfinished import is_held
from stages.lineage import is_current

LOG, ENDED, COMMAND = "local.log", "ended.json", "local.sh"
LOOK_SECONDS = 0.2
CLOCK_SECONDS = 60.0  # by which the clock may have been set since: times of birth are counted from that of boot


class Local:
    """See the module."""

    name = "local"

    def check(self, spec: RunSpec, site: Site) -> None:
        """Raise ConfigError where this machine has not what is asked for."""
        problems = []
        if several := [job.stage for job in spec.jobs if job.trainer.nodes > 1]:
            problems.append(f"--nodes: local is one machine, and {', '.join(several)} asks for more; use --on torchrun")
        if any(job.servers for job in spec.jobs):
            problems.append("--on=local: starts no servers; use --on torchrun, which without --hosts is this machine")
        gpus, here = max(job.trainer.gpus for job in spec.jobs), visible_gpus()
        if gpus > here:
            problems.append(f"--gpus={gpus}: this machine has {here}; use at most as many")
        if problems:
            raise ConfigError(*problems)

    def render(self, spec: RunSpec, site: Site) -> Sequence[Rendered]:
        """The one command line."""
        own = {**site.environment}
        if gpus := max(job.trainer.gpus for job in spec.jobs):
            own["CUDA_VISIBLE_DEVICES"] = gpus_here(range(gpus))
        python, run = spec.jobs[0].trainer.command[0], str(spec.run)
        command = [python, "-P", "-m", "launch.clusters.local", "--run", run, str(spec.run / "recipe.yaml")]
        command += ["--run", run, "--from", spec.jobs[0].stage, "--until", spec.jobs[-1].stage]
        exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(own.items())]
        lines = [
            "set -e",
            f"cd {shlex.quote(str(spec.directory))}",
            *site.setup,
            *exports,
            f"exec {shlex.join(command)}",
        ]
        return [Rendered(COMMAND, "".join(f"{line}\n" for line in lines))]

    def submit(self, spec: RunSpec, site: Site, rendered: Sequence[Rendered], folder: Path) -> Submission:
        """Start it."""
        (folder / ENDED).unlink(missing_ok=True)
        with (folder / LOGS / LOG).open("ab") as log:
            started = subprocess.Popen(
                ["sh", str(folder / COMMAND)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        born = psutil.Process(started.pid).create_time()
        facts = {"host": socket.gethostname(), "pid": str(started.pid), "born": repr(born)}
        stages = tuple(job.stage for job in spec.jobs)
        return Submission(self.name, spec.name, str(spec.directory), stages, time.time(), (), facts=facts)

    def states(self, submission: Submission, run: Path) -> list[StageState]:
        """By the process, if it is one of this machine, and by what it has left."""
        recipe = load_recipe(run / "recipe.yaml")
        alive, code = process_of(submission) is not None or is_held(run), ended(run)
        found: list[StageState] = []
        begun = False  # the first that is not complete is the one that runs, or with which the chain has ended
        for stage in submission.stages:
            if is_current(recipe, run, stage):
                found.append(StageState(stage, "complete", ""))
            elif alive:
                found.append(StageState(stage, "waiting" if begun else "running", "" if begun else told(submission)))
                begun = True
            elif begun:
                found.append(StageState(stage, "stopped", "not begun"))
            elif code is None:
                found.append(StageState(stage, "lost", f"its process on {submission.facts['host']} is gone"))
                begun = True
            else:
                begun = True
                stopped = code in (*RESUMABLE_CODES, 0)
                found.append(StageState(stage, "stopped" if stopped else "failed", f"exit code {code}"))
        return found

    def logs(self, submission: Submission, run: Path, stage: str, rank: int | None, follow: bool) -> Iterator[str]:
        """What the chain has written: of all stages and ranks, which share a terminal."""
        if rank is not None:
            raise ConfigError("--rank: ranks of a local run write to one file; leave it out")
        source = Source(run / FOLDER / LOGS / LOG)
        return read_logs(lambda: [source], follow, lambda: process_of(submission) is not None)

    def cancel(self, submission: Submission, run: Path) -> list[str]:
        """SIGTERM, as from a terminal, and wait."""
        process = process_of(submission)
        if process is None:
            if submission.facts["host"] != socket.gethostname() and is_held(run):
                raise ConfigError(f"{run}: runs on {submission.facts['host']}; cancel it there")
            return []
        process.terminate()
        while process_of(submission) is not None:
            time.sleep(LOOK_SECONDS)
        return [f"pid {process.pid}: stopped"]


def process_of(submission: Submission) -> psutil.Process | None:
    """The process that was started, if it lives and is of this machine."""
    if submission.facts["host"] != socket.gethostname():
        return None
    with suppress(psutil.Error):
        process = psutil.Process(int(submission.facts["pid"]))
        apart = abs(process.create_time() - float(submission.facts["born"]))
        if apart < CLOCK_SECONDS and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def told(submission: Submission) -> str:
    """Where it runs."""
    return f"pid {submission.facts['pid']} on {submission.facts['host']}"


def ended(run: Path) -> int | None:
    """The exit code that the chain has left; None: nothing."""
    try:
        return int(json.loads((run / FOLDER / ENDED).read_text(encoding="utf-8"))["code"])
    except (OSError, ValueError, KeyError):
        return None


def main() -> None:
    """See the module."""
    from launch.cli import main as command_line

    run = Path(sys.argv[2])
    sys.argv = ["rlhf", "run", *sys.argv[3:]]
    code = 1
    try:
        command_line()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        write_json(run / FOLDER / ENDED, {"code": code, "time": time.time(), "pid": os.getpid()})


SCHEDULER = Local()

if __name__ == "__main__":
    main()
