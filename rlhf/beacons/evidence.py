"""What is left of a stage that is ended: every rank's stacks, torch's flight recorder, all beacons, the verdict."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rlhf.beacons.collectives import recorded
from rlhf.beacons.record import RUNNING, Beacon, is_gone, is_here


def leave_verdict(folder: Path, verdict: str, beacons: Sequence[Beacon]) -> None:
    """Write what was decided and what it was decided from."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "verdict.txt").write_text(f"{verdict}\n", encoding="utf-8")
        content = {"verdict": verdict, "beacons": [asdict(beacon) for beacon in beacons]}
        (folder / "verdict.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def leave_stacks(folder: Path, rank: int) -> None:
    """Write where each thread of this process is, and what its collectives were."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"rank-{rank:05d}.stacks.txt").open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        with suppress(RuntimeError, ValueError):  # what torch raises where it has none
            records = [record for record in recorded(True) if record.get("entries")]
            if records:
                path = folder / f"rank-{rank:05d}.flight-recorder.json"
                path.write_text(json.dumps(records) + "\n", encoding="utf-8")


def end_frozen(beacons: Sequence[Beacon]) -> None:
    """Kill the ranks of this machine that have not ended though they were told to: frozen ones cannot."""
    for beacon in beacons:
        if beacon.state == RUNNING and is_here(beacon) and not is_gone(beacon):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(beacon.pid, signal.SIGKILL)
