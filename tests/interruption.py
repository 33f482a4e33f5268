"""What is needed to interrupt a run and to compare what comes of it with a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

EVERY_STEP = "checkpoint.every_steps=1"  # affects nothing but when the state is written


def own_copy(run: Path, folder: Path, stages: Sequence[str]) -> Path:
    """A run directory in `folder/runs/tiny` that holds some complete stages of another."""
    copy = folder / "runs" / "tiny"
    copy.mkdir(parents=True)
    for stage in stages:
        shutil.copytree(run / stage, copy / stage)
    return copy


def start(*arguments: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """The real command line in the background."""
    command = [sys.executable, "-P", "-m", "launch.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a process and to all that it has started, at one moment."""
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None, seconds: float = 120) -> bool:
    """Wait until a condition holds; False if the process ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process and process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return True


def seconds_until(condition: Callable[[], bool], at_most: float, said: Callable[[], str]) -> float:
    """Wait for something; how long it took. said: what there is to read where it does not come."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < at_most, f"waited in vain\n{said()}"
        time.sleep(0.05)
    return time.monotonic() - started


def lines_of(path: Path) -> int:
    """Complete lines of a file that may not be there."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def stage_process(process: subprocess.Popen[Any]) -> int:
    """The process of a stage that a command has started; with several, the first."""
    return min(child.pid for child in psutil.Process(process.pid).children())


def ranks(process: subprocess.Popen[Any], stage: str) -> list[psutil.Process]:
    """The processes of a stage that a command has started, in no order."""
    try:
        return [child for child in psutil.Process(process.pid).children() if f"stages.{stage}" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def figures(stage: Path) -> list[dict[str, Any]]:
    """All figures of a stage's metrics file, in order, clocks apart."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in lines]


def manifest(stage: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((stage / "manifest.json").read_text())
    return content


def assert_same(stage: Path, undisturbed: Path) -> None:
    """Weights, figures, results and samples are those of the other stage, bit for bit."""
    assert figures(stage) == figures(undisturbed)
    mine, theirs = manifest(stage), manifest(undisturbed)
    assert mine["results"] == theirs["results"]
    assert mine["checksums"] == theirs["checksums"]
    assert mine["fingerprint"] == theirs["fingerprint"]
    names = sorted(path.name for path in (stage / "samples").glob("*"))
    assert names == sorted(path.name for path in (undisturbed / "samples").glob("*"))
    for name in names:
        assert (stage / "samples" / name).read_bytes() == (undisturbed / "samples" / name).read_bytes()
    assert not (stage / ".partial").exists()


def no_process_left(marker: str) -> bool:
    """Whether no process runs any more whose command line names something."""
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(marker in part for part in process.info["cmdline"] or []):
            return False
    return True
