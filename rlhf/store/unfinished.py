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
from pathlib import Path
from typing import IO

from rlhf.errors import ArtifactError
from rlhf.store.artifact import MANIFEST, MODELS, PARTIAL, Lineage, clear, remove, write_json

LINEAGE = "lineage.json"
METRICS, SAMPLES = "metrics.jsonl", "samples"


def hold(directory: Path) -> IO[str]:
    """Lock a directory for as long as the file that this returns is open in some process.

    Raises ArtifactError where another process holds it, or where nothing can be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{directory}: cannot be written ({error.strerror}); give another --run") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ArtifactError(f"{directory}: in use by another rlhf process; wait or give another --run") from error
    return file


def is_unfinished(directory: Path, fingerprint: str) -> bool:
    """Whether a stage of this fingerprint has begun here and not ended."""
    if (directory / MANIFEST).is_file():
        return False
    try:
        lineage = json.loads((directory / PARTIAL / LINEAGE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(lineage, dict) and lineage.get("fingerprint") == fingerprint


def begin(directory: Path, lineage: Lineage, restart: bool = False) -> bool:
    """Take up the unfinished stage of the same lineage, or make room for a new one; whether it was taken up."""
    if is_unfinished(directory, lineage.fingerprint) and not restart:
        for name in MODELS:  # killed while it published: these are saved again
            remove(directory / name)
            remove(directory / PARTIAL / name)
        return True
    clear(directory)
    write_json(directory / PARTIAL / LINEAGE, {"fingerprint": lineage.fingerprint, "fields": dict(lineage.fields)})
    return False


def cut_back(directory: Path, step: int, size: int, say: Callable[[str], None]) -> None:
    """Remove figures and samples from after a checkpoint.

    size: bytes of the metrics file when the checkpoint was written, behind the last line that it covers.
    """
    path = directory / METRICS
    standing = path.stat().st_size if path.is_file() else 0
    if standing < size:
        say(f"{path}: {size - standing:,} bytes shorter than at the checkpoint; figures before step {step} are missing")
    elif standing > size:
        with path.open("r+b") as file:
            file.truncate(size)
    for file_of_samples in (directory / SAMPLES).glob("*.parquet"):
        number = file_of_samples.stem.rpartition("-")[2]
        if number.isdigit() and int(number) > step:
            remove(file_of_samples)
    for leftover in (directory / SAMPLES).glob(".*.partial"):
        remove(leftover)
