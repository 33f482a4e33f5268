"""How one result in a stage's directory makes room for the next, and returns if the next cannot begin.

    STAGE/.previous/     a complete result, until the new one is complete
          .interrupted/  an unfinished one with checkpoints, until the new one is complete or its recipe runs again
          .moving/       one of them on its way: found after a kill, it is moved back

Everything moves by renames within one directory, the manifest first out and last in, so that at no moment a part of a
result passes for the whole. Loads no torch.
"""

from __future__ import annotations

from pathlib import Path

from rlhf.errors import ArtifactError
from rlhf.store.artifact import CONTENTS, INTERRUPTED, MANIFEST, PARTIAL, PREVIOUS, REMOVED, discard, remove

MOVING, RETURNING = ".moving", ".returning"
OUT = (MANIFEST, *CONTENTS, PARTIAL)  # the order in which a result leaves; it comes back in reverse


def clear(directory: Path) -> str | None:
    """Make room for a stage; the slot where what stood there was set aside, None if it was not worth keeping.

    Raises ArtifactError where names that a stage writes stand in a directory that no stage has written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    recover(directory)
    standing = [name for name in CONTENTS if (directory / name).exists()]
    if standing and not any((directory / name).exists() for name in (MANIFEST, PARTIAL)):
        raise ArtifactError(f"{directory}: holds {standing[0]} that no stage wrote; give another --output")
    slot = vacate(directory)
    (directory / PARTIAL).mkdir()
    return slot


def vacate(directory: Path) -> str | None:
    """Move what is worth keeping into its slot, and remove the rest."""
    slot = None
    if (directory / MANIFEST).is_file():
        slot = PREVIOUS
    elif any(directory.glob("checkpoints/step-*")):
        slot = INTERRUPTED
    if slot is not None:
        moving = directory / MOVING
        moving.mkdir()
        for name in OUT:
            if (directory / name).exists():
                (directory / name).replace(moving / name)
        discard(directory / slot)
        moving.replace(directory / slot)
    for name in (*CONTENTS, PARTIAL):
        remove(directory / name)
    return slot


def put_back(directory: Path, slot: str | None) -> None:
    """Undo `clear` for a stage that could not begin: what it wrote goes, what was set aside returns."""
    for name in (*CONTENTS, PARTIAL):
        remove(directory / name)
    if slot is not None:
        (directory / slot).replace(directory / MOVING)
        recover(directory)


def take_up(directory: Path) -> None:
    """Exchange what stands in a stage's directory with what was interrupted before."""
    (directory / INTERRUPTED).replace(directory / RETURNING)
    vacate(directory)
    (directory / RETURNING).replace(directory / MOVING)
    recover(directory)


def recover(directory: Path) -> None:
    """Bring to an end what a kill has interrupted: a result on its way returns, a directory left empty is filled."""
    remove(directory / REMOVED)
    if (directory / MOVING).is_dir():
        _move_in(directory)
    empty = not any((directory / name).exists() for name in OUT)
    if (directory / RETURNING).is_dir():
        if empty:
            (directory / RETURNING).replace(directory / MOVING)
        else:
            discard(directory / INTERRUPTED)
            (directory / RETURNING).replace(directory / INTERRUPTED)
    elif empty:
        slot = next((slot for slot in (PREVIOUS, INTERRUPTED) if (directory / slot).is_dir()), None)
        if slot is not None:
            (directory / slot).replace(directory / MOVING)
    if (directory / MOVING).is_dir():
        _move_in(directory)


def _move_in(directory: Path) -> None:
    for name in reversed(OUT):
        if (directory / MOVING / name).exists():
            remove(directory / name)
            (directory / MOVING / name).replace(directory / name)
    (directory / MOVING).rmdir()
