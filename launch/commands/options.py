"""What options hold that typer does not check: lists of numbers, files and folders to write, what may be dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from data.reading import NAMED
from data.records import BadRecord
from rlhf.errors import ConfigError, DataError


def numbers(option: str, text: str, whole: bool = False) -> list[float]:
    """A comma-separated list of numbers from zero. Raises ConfigError for anything else."""
    try:
        found = [float(int(part)) if whole else float(part) for part in text.split(",")]
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{option}={text}: give {kind} with commas between them, as in {option} 1,2") from None
    if not all(0 <= value < math.inf for value in found) or len(set(found)) < len(found):
        raise ConfigError(f"{option}={text}: give each number once, and none below zero or infinite")
    return found


def check_place(option: str, path: Path, suffix: str) -> None:
    """Raise ConfigError where a file to write has another suffix, or cannot be there."""
    if path.suffix != suffix:
        raise ConfigError(f"{option}={path}: its name must end in {suffix}")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"{option}={path}: no file can be there; give one in a directory that exists")


def check_bad(bad: Sequence[BadRecord], drop: bool) -> None:
    """Raise DataError for records that cannot be used, the first of them named, unless they may be dropped."""
    if bad and not drop:
        rest = [f"{len(bad) - NAMED:,} more records cannot be used"] if len(bad) > NAMED else []
        raise DataError(*(f"{record}; mend or remove it, or give --drop-bad" for record in bad[:NAMED]), *rest)


def check_output(output: Path) -> None:
    """Raise ConfigError where a folder to write to is a file."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output={output}: a file; give a directory")
