"""Many commands, some at a time: for studies that take runs of many recipes. Safe to end and to start again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from launch.pipeline import stoppable
from rlhf.errors import RLHFError
from rlhf.tracking.console import StageProgress


@dataclass(frozen=True)
class Job:
    """One `rlhf` command; what it prints goes to a file."""

    name: str
    arguments: Sequence[str]
    log: Path

    @property
    def command(self) -> list[str]:
        """The command as it is started, with this Python."""
        return [sys.executable, "-P", "-m", "launch.cli", *self.arguments]


class Workers:
    """So many jobs at once, each with its share of the machine's cores.

    They are apart from our terminal: a signal to stop reaches us alone, and we pass it on once. Only a kill that we do
    not see leaves them running; the same command then finds their run directories held.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.ended = False

    def run(self, jobs: Sequence[Job], title: str) -> None:
        """Run all jobs, however one ends.

        Raises RLHFError with a line for each that failed, `launch.pipeline.Interrupted` where a signal stopped them.
        """
        failed: list[str] = []
        with (
            stoppable("while jobs ran"),
            ThreadPoolExecutor(self.at_once) as pool,
            StageProgress(title, len(jobs)) as progress,
        ):
            waiting = {pool.submit(self._run, job): job for job in jobs}
            try:
                for done, future in enumerate(as_completed(waiting), start=1):
                    job = waiting[future]
                    if code := future.result():
                        failed.append(f"{job.name}: ended with exit code {code}; {job.log} says why")
                    progress.update(done, {})
            except BaseException:
                self.end()
                pool.shutdown(cancel_futures=True)
                raise
        if failed:
            raise RLHFError(*failed)

    def end(self) -> None:
        """End the jobs that run; they stop behind a checkpoint."""
        with self.lock:
            self.ended = True
            for process in self.running:
                process.terminate()

    def _run(self, job: Job) -> int:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // self.at_once))
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        with job.log.open("ab") as log:
            with self.lock:
                if self.ended:
                    return 1
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
                self.running.add(process)
            code = process.wait()
        with self.lock:
            self.running.discard(process)
        return code
