"""How the processes of a stage tell people what is wrong: to the launcher if there is one, and else in the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# The exit code of a stage that cannot go on for what another try may find mended: EX_IOERR of sysexits.h.
AWAY = 74
# Where the launcher wants the problems of each rank, to show each of them once.
ERRORS = "RLHF_ERRORS"
# The folder in which the launcher wants each rank's exit code: agents such as torchrun's keep it to themselves.
CODES = "RLHF_CODES"


def report(problems: Sequence[str]) -> None:
    """Say problems, one line each, to the launcher if there is one and else to people."""
    lines = [f"error: {problem}\n" for problem in problems]
    if path := os.environ.get(ERRORS):
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(lines)
    else:
        sys.stderr.writelines(lines)
        sys.stderr.flush()


def tell_code(code: int) -> None:
    """Leave a process's exit code to the launcher, if there is one that asks."""
    if folder := os.environ.get(CODES):
        with suppress(OSError):  # it ends one way or the other
            Path(folder, os.environ.get("RANK", "0")).write_text(str(code), encoding="utf-8")


def reported(seconds: float = 1.0) -> bool:
    """Whether another process of this stage has said why it ended, now or within seconds."""
    path = Path(os.environ.get(ERRORS, "absent"))
    deadline = time.monotonic() + seconds
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.is_file()
