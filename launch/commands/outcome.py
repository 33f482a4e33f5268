"""`rlhf doctor RUN`: what has become of a run, read from the beacons of its processes. Loads no torch."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.beacons.diagnosis import ABSENT, GONE_SECONDS, Observed, outcome
from rlhf.beacons.record import BEACONS, COMPLETE, HANG, RUNNING, Beacon, is_frozen, is_gone, left_by, read, read_all
from rlhf.errors import ArtifactError, ConfigError
from rlhf.store.artifact import MANIFEST, PARTIAL
from rlhf.store.unfinished import is_held
from stages.lineage import STAGES

WATCHED_SECONDS = 2.5  # longer than two beats: who does not change meanwhile is silent
WELL = (COMPLETE, RUNNING)
COLUMNS = ("rank", "host", "pid", "state", "step", "phase", "collective", "last sign", "at")


@dataclass(frozen=True)
class Report:
    """What has become of one stage."""

    stage: str
    directory: Path
    state: str
    verdict: str
    seen: tuple[Observed, ...]
    evidence: tuple[Path, ...]  # of executions that the watchdog ended, this one or earlier ones

    def record(self) -> dict[str, Any]:
        """As JSON."""
        ranks = [{**asdict(e.beacon), "quiet_seconds": round(e.quiet, 1), "gone": e.gone} for e in self.seen]
        evidence = [str(path) for path in self.evidence]
        return {"stage": self.stage, "state": self.state, "verdict": self.verdict, "hangs": evidence, "ranks": ranks}


def examine(directory: Path, stage: str | None) -> Report:
    """What has become of a stage of a run, or of the last one that began. Raises ArtifactError where none did."""
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"--stage {stage} is not a stage; use one of {', '.join(STAGES)}")
    if has_begun(directory):  # a stage's own
        return report(directory)
    begun = [name for name in STAGES if has_begun(directory / name)]
    if stage is not None and stage not in begun:
        raise ArtifactError(f"{directory / stage}: has not begun here; begun: {', '.join(begun) or 'nothing'}")
    if not begun:
        raise ArtifactError(f"{directory}: no stage has begun here; give a run directory or one stage's")
    # Stages may run again: the last is the one that gave a sign last.
    return report(directory / (stage or max(begun, key=lambda name: last_sign(directory / name))))


def has_begun(directory: Path) -> bool:
    """Whether a stage has begun in a directory."""
    return any((directory / name).exists() for name in (MANIFEST, PARTIAL, BEACONS))


def last_sign(directory: Path) -> float:
    """When a stage has last written something of itself."""
    paths = [directory / MANIFEST, directory / PARTIAL, *(directory / BEACONS).glob("rank-*.json")]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def report(directory: Path) -> Report:
    """See `examine`; of a stage's directory."""
    seen = watch(directory / BEACONS)
    if seen:
        state, verdict = outcome(seen, seen[0].beacon.warn_seconds)
    elif (directory / MANIFEST).is_file():
        state, verdict = COMPLETE, "complete"
    elif is_held(directory):
        state, verdict = RUNNING, "is starting: it holds its directory and has no beacon yet (or watchdog is null)"
    else:
        state, verdict = ABSENT, "it has begun and left no beacon: it ended before, or watchdog is null in its recipe"
    evidence = sorted((directory / HANG).glob("*/")) if (directory / HANG).is_dir() else []
    return Report(directory.resolve().name, directory, state, verdict, tuple(seen), tuple(evidence))


def watch(directory: Path) -> list[Observed]:
    """The beacons of a stage, looked at for so long that the living are told from the dead."""
    first = read_all(directory)
    living = [beacon for beacon in first if beacon.state == RUNNING and not is_gone(beacon)]
    if not living:
        return [observe(directory, beacon, 0) for beacon in first]
    time.sleep(WATCHED_SECONDS)
    return [observe(directory, read(directory, beacon.rank) or beacon, beacon.count) for beacon in first]


def observe(directory: Path, beacon: Beacon, count: int) -> Observed:
    """A beacon as it is now; count: what it was when it was looked at before."""
    beacon, killed = left_by(directory, beacon)
    silence = time.time() - beacon.time
    if killed:  # on this machine, so that there is no word on its way for which to wait
        return Observed(beacon, max(silence, GONE_SECONDS), gone=True)
    if beacon.state != RUNNING or beacon.count != count != 0:
        return Observed(beacon, 0.0)
    return Observed(beacon, max(silence, WATCHED_SECONDS), frozen=is_frozen(beacon))


def show(found: Report, console: Console) -> None:
    """A table of ranks and the verdict."""
    if found.seen:
        table = Table(*COLUMNS, box=SIMPLE_HEAD, padding=0)
        for each in found.seen:
            beacon = each.beacon
            state = "gone" if each.gone else "frozen" if each.frozen else beacon.state
            begun = max((number for number, _ in beacon.groups.values()), default=0)
            collective = (
                f"in {beacon.wait.operation} {beacon.wait.number}" if beacon.wait else f"{begun} begun" if begun else ""
            )
            sign = time.strftime("%H:%M:%S", time.localtime(beacon.time))
            place = [str(beacon.rank), beacon.host, str(beacon.pid), state, str(beacon.step or ""), beacon.phase]
            table.add_row(*map(Text, (*place, collective, sign, beacon.where)))  # no markup, whatever brackets it has
        console.print(table)
    for each in found.seen:
        if each.beacon.state == "raised":
            console.print(
                f"rank {each.beacon.rank}, its last lines:\n{each.beacon.frames}", highlight=False, markup=False
            )
            break
    line = f"{found.stage}: {found.verdict}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    for path in found.evidence:
        console.print(f"evidence of a hang: {path}", highlight=False, markup=False, soft_wrap=True)
