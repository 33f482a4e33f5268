"""A stage that has begun and not ended: what marks it, who holds it, and whether it can be taken up again.

    STAGE/.lock                 held by the process that writes here; the kernel lets go when it dies
          .partial/lineage.json what the stage that began here was made from
          .partial/             whatever it is making besides

Loads no torch.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rlhf.errors import ArtifactError, InUseError
from rlhf.store.artifact import INTERRUPTED, MANIFEST, MODELS, PARTIAL, Lineage, remove, write_json
from rlhf.store.turnover import clear, recover, take_up

LINEAGE = "lineage.json"
METRICS, SAMPLES = "metrics.jsonl", "samples"


def hold(directory: Path, option: str = "--run") -> IO[str]:
    """Lock a directory for as long as the file that this returns is open in some process; option: what names another.

    Raises InUseError where another process holds it, ArtifactError where nothing can be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{directory}: cannot be written ({error.strerror}); give another {option}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InUseError(f"{directory}: in use by another rlhf process; wait or give another {option}") from error
    return file


def is_held(directory: Path) -> bool:
    """Whether some process holds a directory; asks for a moment's share of the lock and makes no file."""
    try:
        with (directory / ".lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or none that may be read
        return False
    return False


def is_unfinished(directory: Path, fingerprint: str) -> bool:
    """Whether a stage of this fingerprint has begun here and not ended."""
    if (directory / MANIFEST).is_file():
        return False
    try:
        lineage = json.loads((directory / PARTIAL / LINEAGE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(lineage, dict) and lineage.get("fingerprint") == fingerprint


@dataclass(frozen=True)
class Begun:
    """How a stage began."""

    resumed: bool  # it goes on with what an execution before it has left
    slot: str | None = None  # where what stood there was set aside


def begin(directory: Path, lineage: Lineage, restart: bool = False) -> Begun:
    """Take up the unfinished stage of the same lineage, or make room for a new one."""
    directory.mkdir(parents=True, exist_ok=True)
    recover(directory)
    mine = [place for place in (directory, directory / INTERRUPTED) if is_unfinished(place, lineage.fingerprint)]
    if mine and not restart:
        if mine[0] != directory:
            take_up(directory)
        for name in MODELS:  # killed while it published: these are saved again
            remove(directory / name)
            remove(directory / PARTIAL / name)
        return Begun(resumed=True)
    slot = clear(directory)
    write_json(directory / PARTIAL / LINEAGE, {"fingerprint": lineage.fingerprint, "fields": dict(lineage.fields)})
    return Begun(resumed=False, slot=slot)


def cut_back(directory: Path, step: int, size: int, say: Callable[[str], None]) -> None:
    """Remove figures and samples from after a checkpoint.

    size: bytes of the metrics file when the checkpoint was written, behind the last line that it covers.
    """
    path = directory / METRICS
    content = path.read_bytes() if path.is_file() else b""
    if len(content) < size:
        say(f"{path}: {size - len(content):,} bytes shorter than at the checkpoint; some figures are missing")
    whole = content[:size].rpartition(b"\n")  # no figure is written behind half a line
    if content:
        with path.open("r+b") as file:
            file.truncate(len(whole[0] + whole[1]))
    for file_of_samples in (directory / SAMPLES).glob("*.parquet"):
        number = file_of_samples.stem.rpartition("-")[2]
        if number.isdigit() and int(number) > step:
            remove(file_of_samples)
    for leftover in (directory / SAMPLES).glob(".*.partial"):
        remove(leftover)
