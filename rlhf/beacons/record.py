"""A beacon: what one rank says of itself, as a file of fixed size that is written in place.

In place, so that a full disk does not silence a rank; the count stands at both ends, so that a record that was read
while it was written is known to be none. Loads no torch.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

BEACONS = ".beacons"  # in a stage's directory
HANG = "hang"  # what was left of an execution that the watchdog ended
SIZE = 8192  # bytes of a record
RUNNING, COMPLETE, STOPPED = "running", "complete", "stopped"
REFUSED, RAISED, LOST, ABORTED = "refused", "raised", "lost", "aborted"


@dataclass(frozen=True)
class Wait:
    """A collective that a rank has begun and that has not come back."""

    group: str
    number: int  # of this group's collectives, counted from 1
    operation: str  # all_reduce, all_gather, ...
    sizes: str = ""  # of its tensors

    def __str__(self) -> str:
        """For people."""
        return f"{self.operation} number {self.number}"


@dataclass(frozen=True)
class Beacon:
    """One rank of one execution of a stage. Seconds are ages at the time of writing, by the rank's own clock."""

    execution: str
    rank: int
    ranks: int
    host: str
    pid: int
    born: float  # when the process began: ids are used again
    namespace: int = 0  # of process ids: containers may share a host's name and have ids of their own
    count: int = 0  # raised with each writing
    time: float = 0.0  # of writing, by the clock of the host
    warn_seconds: float = 20.0
    state: str = RUNNING
    word: str = ""  # the last one: why it has ended
    frames: str = ""  # of an exception, the last lines of its traceback
    phase: str = "load"
    loading: bool = False  # a part of the stage in which ranks may be far apart
    phase_seconds: float = 0.0
    step: int = 0
    where: str = ""  # the line of ours or of the user's that the main thread is at
    groups: dict[str, tuple[int, float]] = field(default_factory=dict)  # collectives begun, seconds since the last one
    wait: Wait | None = None
    patience: str = ""  # what it has announced to do
    patience_seconds: float = 0.0  # and how long it may still take
    unannounced_seconds: float | None = None  # since the last such wait was over; None if there was none
    verdict: str = ""  # why the stage is being ended
    folder: str = ""  # and where the evidence goes

    @property
    def name(self) -> str:
        """The rank, for people."""
        return f"rank {self.rank} of {self.ranks} on {self.host} (pid {self.pid})"

    @property
    def place(self) -> str:
        """Where in the stage it is."""
        return f"in {self.phase} ({f'step {self.step}' if self.step else 'before the first step'})"


def path_of(directory: Path, rank: int) -> Path:
    """The beacon of a rank."""
    return directory / f"rank-{rank:05d}.json"


def encode(beacon: Beacon) -> bytes:
    """A record of SIZE bytes; long texts lose their beginning."""
    while True:
        # Neither asdict, which copies, nor an indent, which is not json's fast way: this is written every second.
        wait = vars(beacon.wait) if beacon.wait else None
        fields = {"count": beacon.count, **vars(beacon), "wait": wait, "again": beacon.count}
        content = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        if len(content) < SIZE:
            return content.ljust(SIZE - 1) + b"\n"
        longest = max(("frames", "word", "verdict", "where", "folder"), key=lambda name: len(getattr(beacon, name)))
        text = getattr(beacon, longest)
        # Without any text left, there are more groups than a record holds.
        shorter: dict[str, Any] = {longest: text[len(text) // 2 + 1 :]} if text else {"groups": {}}
        beacon = replace(beacon, **shorter)


def decode(content: bytes) -> Beacon | None:
    """The beacon of a record; None where it is none, or half of one and half of the next."""
    try:
        fields: dict[str, Any] = json.loads(content.rstrip())
        if fields.pop("again") != fields["count"]:
            return None
        wait = fields.pop("wait")
        groups = {name: (int(number), float(age)) for name, (number, age) in fields.pop("groups").items()}
        return Beacon(**fields, groups=groups, wait=Wait(**wait) if wait else None)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def write(directory: Path, beacon: Beacon) -> None:
    """Replace the record of a rank by a newer one. Raises OSError."""
    # Opened and closed each time: that is when a network file system sends what was written, and looks for what is new.
    descriptor = os.open(path_of(directory, beacon.rank), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, encode(beacon), 0)
    finally:
        os.close(descriptor)


def read(directory: Path, rank: int) -> Beacon | None:
    """The beacon of a rank; None where there is none that can be read."""
    with suppress(OSError):
        descriptor = os.open(path_of(directory, rank), os.O_RDONLY)
        try:
            return decode(os.read(descriptor, SIZE))
        finally:
            os.close(descriptor)
    return None


def read_all(directory: Path) -> list[Beacon]:
    """The beacons that a stage has left or is keeping, by rank; those of one execution."""
    paths = sorted(directory.glob("rank-*.json"))
    found = [beacon for path in paths if (beacon := read(directory, int(path.stem[5:]))) is not None]
    return [beacon for beacon in found if beacon.execution == found[0].execution]


def pid_namespace() -> int:
    """Which numbering of processes this one's id is of; 0 where the system has only one."""
    with suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def is_here(beacon: Beacon) -> bool:
    """Whether the process is or was one of those that this one sees, so that its id means the same to both."""
    return (beacon.host, beacon.namespace) == (socket.gethostname(), pid_namespace())


def is_gone(beacon: Beacon) -> bool:
    """Whether the process is known to have ended: it was here and is not there any more."""
    if not is_here(beacon):
        return False
    try:
        process = psutil.Process(beacon.pid)
        return bool(process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - beacon.born) > 2)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:  # it is there, and we may not look at it
        return False


def left_by(directory: Path, beacon: Beacon) -> tuple[Beacon, bool]:
    """The newest beacon of a rank, and whether its process was killed: known to have ended without a last word."""
    if beacon.state != RUNNING or not is_gone(beacon):
        return beacon, False
    # Between our reading and its end it may have left one.
    newest = read(directory, beacon.rank) or beacon
    return newest, newest.state == RUNNING


def is_frozen(beacon: Beacon) -> bool:
    """Whether the process is here and was stopped by a signal."""
    with suppress(psutil.Error):
        return is_here(beacon) and str(psutil.Process(beacon.pid).status()) == psutil.STATUS_STOPPED
    return False
