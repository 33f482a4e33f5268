"""All trackers besides metrics.jsonl, behind a process that reads the stage's own files.

A tracker's server may be away, slow or hang: neither its start nor a figure nor the end can hold up the stage, for
nothing is handed over. What was not sent by the end stands in metrics.jsonl and samples/, and `rlhf sync` sends it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.tracking.sender import LOCAL_SECONDS, STOP
from rlhf.tracking.services import Job


class BackgroundTrackers:
    """The trackers of one stage; figures and samples reach them through the stage's files."""

    def __init__(self, job: Job, warn: Callable[[str], None]) -> None:
        self.job = job
        self.warn = warn
        self.manifest: Mapping[str, Any] | None = None
        self.owner = os.getpid()  # a forked child, such as one that loads data, has nothing to close
        self.process: subprocess.Popen[str] | None = start_sender(job)
        atexit.register(self.close)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing: the file has it."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Nothing: the file has it."""

    def result(self, manifest: Mapping[str, Any]) -> None:
        """Remember what the stage made until it is closed."""
        self.manifest = manifest

    def close(self) -> None:
        """Wait a bounded time until all has arrived, and say what has not."""
        if self.process is None or os.getpid() != self.owner:
            return
        process, self.process = self.process, None
        atexit.unregister(self.close)
        outcome = end_sender(process, self.manifest, self.job.seconds)
        for line in unsent(self.job, outcome["problems"]):
            self.warn(line)


def start_sender(job: Job) -> subprocess.Popen[str]:
    """Start the process that feeds the trackers of a stage."""
    environment = dict(os.environ)
    environment.pop("WANDB_SERVICE", None)  # another process's would keep the run of a stage that was killed open
    log = Path(job.directory) / ".partial" / "tracking.log"
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # until it has its own say: they come to a whole group
    try:
        with log.open("a") if log.parent.is_dir() else open(os.devnull, "a") as messages:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rlhf.tracking.sender"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                env=environment,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    try:
        assert process.stdin is not None
        process.stdin.write(job.dump() + "\n")
        process.stdin.flush()
    except BrokenPipeError:  # told at the end
        pass
    return process


def end_sender(process: subprocess.Popen[str], manifest: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
    """Tell the process that the stage has ended, and wait for it; see `rlhf.tracking.sender` for what it says."""
    try:
        said, _ = process.communicate(json.dumps(manifest) + "\n", timeout=seconds + LOCAL_SECONDS)
        outcome: dict[str, Any] = json.loads(said)
        return outcome
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    except (BrokenPipeError, ValueError):
        process.kill()
        process.wait()
    return {"problems": {"": "the process that feeds the trackers has ended or hangs"}, "sent": {}}


def unsent(job: Job, problems: Mapping[str, str]) -> list[str]:
    """What was not sent, one line a service."""
    directory = Path(job.directory)
    run = directory.parent if directory.name == job.stage else directory
    remedy = f"metrics.jsonl and samples/ have it, `rlhf sync {run}` sends it"
    return [
        f"tracking{'.' + name if name else ''}: not everything was sent ({why}); {remedy}"
        for name, why in problems.items()
    ]
