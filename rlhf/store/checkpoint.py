"""Checkpoints of one stage: directories `step-N` that appear whole or not at all and are verified before they are read.

    STAGE/checkpoints/step-000025/          what the stage wrote
                                  checkpoint.json   step, score, fingerprint of the stage, seconds, processes
                                  checksums.json    SHA-256 of every other file; written last, before the rename

A checkpoint is written under a hidden name, flushed to the disk, then renamed. A damaged one is named, set aside and
never loaded; the one before it is taken. Loads no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import Recipe
from rlhf.store.artifact import checksums, file_digest, remove, write_json

FORMAT = 2  # raised when a checkpoint of the same stage would be written in another way
META, CHECKSUMS = "checkpoint.json", "checksums.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay."""

    last: int  # the newest so many
    every: int | None = None  # and those whose step is a multiple of this
    best: bool = True  # and the one with the highest held-out score


def retention_of(recipe: Recipe) -> Retention:
    """What a recipe keeps."""
    config = recipe.checkpoint
    return Retention(config.keep_last, config.keep_every, config.keep_best)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    directory: Path
    meta: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The training step after which it was written."""
        return int(self.meta["step"])

    @property
    def good(self) -> bool:
        """Whether the step before it was sound; see `rlhf.ppo.safety`."""
        return not self.meta.get("faults_in_a_row")

    @property
    def score(self) -> float | None:
        """The held-out score at that step, higher is better; None where nothing was evaluated."""
        return None if self.meta["score"] is None else float(self.meta["score"])


class Damaged(Exception):
    """A checkpoint that must not be loaded; the message says why."""


class CheckpointStore:
    """The checkpoints of a stage whose fingerprint is given; those of any other are not its own."""

    def __init__(self, directory: Path, fingerprint: str, retention: Retention) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self.retention = retention

    def begin(self, step: int) -> Path:
        """Make an empty hidden directory to write a checkpoint into; what an earlier attempt left behind is removed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob(".step-*"):
            remove(leftover)
        partial = self.partial(step)
        partial.mkdir()
        return partial

    def commit(self, step: int, meta: Mapping[str, Any]) -> Checkpoint:
        """Checksum, flush and rename what was written since `begin`; then remove what need not be kept."""
        partial = self.partial(step)
        record = {"format": FORMAT, "step": step, "fingerprint": self.fingerprint, **meta}
        write_json(partial / META, record)
        write_json(partial / CHECKSUMS, checksums(partial, (".",)))
        flush(partial)
        final = self.final(step)
        remove(final)  # a run that was resumed from before this step writes it again
        partial.replace(final)
        flush_directory(self.directory)
        self.prune()
        return Checkpoint(final, record)

    def abandon(self, step: int) -> None:
        """Give up what was written since `begin`."""
        remove(self.partial(step))

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose files match their checksums.

        Damaged ones are said and set aside as `step-N.damaged`, so that they neither load nor count as the newest.
        """
        for directory in reversed(self._directories()):
            try:
                return self.verified(directory)
            except Damaged as problem:
                say(f"{problem}; it is not used, an older one is looked for")
                with suppress(OSError):  # a disk that cannot even rename it
                    aside = directory.with_name(f"{directory.name}.damaged")
                    remove(aside)
                    directory.replace(aside)
        return None

    def newest_good(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest valid checkpoint after a sound step; those from among faulty ones are set aside as `.faulty`.

        Raises OSError on a disk that cannot rename them.
        """
        while (checkpoint := self.newest(say)) and not checkpoint.good:
            aside = checkpoint.directory.with_name(f"{checkpoint.directory.name}.faulty")
            remove(aside)
            checkpoint.directory.replace(aside)
        return checkpoint

    def verified(self, directory: Path) -> Checkpoint:
        """A checkpoint after its files were compared with their checksums; raises Damaged with the cause."""
        try:
            meta = json.loads((directory / META).read_text(encoding="utf-8"))
            wanted = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
            if not isinstance(meta, dict) or not isinstance(wanted, dict) or META not in wanted:
                raise ValueError("not what a stage writes")
        except (OSError, ValueError) as error:
            name = Path(getattr(error, "filename", None) or directory / META)
            cause = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise Damaged(f"{name}: {cause}") from error
        for name, checksum in wanted.items():
            path = directory / name
            if not path.is_file():
                raise Damaged(f"{path}: missing")
            try:
                digest = file_digest(path)
            except OSError as error:
                raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
            if digest != checksum:
                raise Damaged(f"{path}: damaged (its checksum differs)")
        if meta.get("format") != FORMAT:
            raise Damaged(f"{directory}: of checkpoint format {meta.get('format')}, not {FORMAT}")
        if meta.get("fingerprint") != self.fingerprint:
            raise Damaged(f"{directory}: of another recipe, other data or other inputs")
        return Checkpoint(directory, meta)

    def best_score(self) -> float | None:
        """The highest held-out score of the checkpoints that stand."""
        scores = [checkpoint.score for checkpoint in self._read() if checkpoint.score is not None]
        return max(scores, default=None)

    def prune(self) -> None:
        """Remove what the retention does not keep; a hidden name first, so that no half of one is ever found."""
        standing = self._read()
        keep = {checkpoint.step for checkpoint in standing[-self.retention.last :]} | self.milestones(standing)
        keep |= {checkpoint.step for checkpoint in [each for each in standing if each.good][-1:]}
        self._remove(checkpoint.directory for checkpoint in standing if checkpoint.step not in keep)

    def finish(self) -> None:
        """The stage is complete: its newest checkpoints have served, the best and the milestones stay."""
        standing = self._read()
        keep = self.milestones(standing)
        self._remove(checkpoint.directory for checkpoint in standing if checkpoint.step not in keep)
        for leftover in [*self.directory.glob(".step-*"), *self.directory.glob("step-*.*")]:  # damaged, faulty
            remove(leftover)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def milestones(self, standing: Iterable[Checkpoint]) -> set[int]:
        """The steps that are kept whatever comes later: every so many, and the best by held-out score."""
        standing = list(standing)
        every = self.retention.every
        keep = {checkpoint.step for checkpoint in standing if every and checkpoint.step % every == 0}
        scored = [(checkpoint.score, -checkpoint.step) for checkpoint in standing if checkpoint.score is not None]
        # The first of equal scores: it is the best at the moment when it is written, whenever others are.
        return keep | ({-max(scored)[1]} if scored and self.retention.best else set())

    def _read(self) -> list[Checkpoint]:
        """What stands, oldest first, by its own account: reading all files for checksums is for loading."""
        found = []
        for directory in self._directories():
            try:
                wanted = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
                if wanted[META] == file_digest(directory / META):
                    found.append(Checkpoint(directory, json.loads((directory / META).read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError, KeyError):
                continue  # damaged; whoever wants to load it will name it
        return found

    def _directories(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        named = [(match, path) for path in self.directory.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(named, key=lambda pair: int(pair[0][1]))]

    def final(self, step: int) -> Path:
        """Where a checkpoint stands once it is committed."""
        return self.directory / f"step-{step:06d}"

    def partial(self, step: int) -> Path:
        """Where a checkpoint is written before it is committed."""
        return self.directory / f".step-{step:06d}.partial"

    def _remove(self, directories: Iterable[Path]) -> None:
        for directory in directories:
            doomed = directory.with_name(f".{directory.name}.removed")
            directory.replace(doomed)
            remove(doomed)


def flush(directory: Path) -> None:
    """Have the disk hold all files below a directory, so that a rename never outlives what it names."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            flush_directory(path)
    flush_directory(directory)


def flush_directory(directory: Path) -> None:
    """Have the disk hold a directory's entries."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
