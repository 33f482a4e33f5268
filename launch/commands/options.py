"""What options hold that typer does not check: lists of numbers, and a folder to write to."""

from __future__ import annotations

import math
from pathlib import Path

from rlhf.errors import ConfigError


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


def check_output(output: Path) -> None:
    """Raise ConfigError where a folder to write to is a file."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output={output}: a file; give a directory")
