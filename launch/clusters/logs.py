"""Lines of log files that grow, and of files that are yet to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Source:
    """A file, and which of its lines are wanted."""

    path: Path
    prefix: str = ""  # before each line, for people
    begins: str | None = None  # only lines that begin so; it is cut off


def read_logs(sources: Callable[[], Sequence[Source]], follow: bool, runs: Callable[[], bool]) -> Iterator[str]:
    """Lines of all sources, one source after the other; follow: and those that come while something runs.

    sources: asked again each time, for files appear.
    """
    opened: dict[Path, IO[str]] = {}
    begun: dict[Path, str] = {}  # a line whose end is yet to come
    try:
        while True:
            last = not follow or not runs()  # asked before the files are read: nothing comes behind it
            for source in sources():
                if source.path not in opened and source.path.is_file():
                    opened[source.path] = source.path.open(encoding="utf-8", errors="replace", newline="")
                if file := opened.get(source.path):
                    *lines, begun[source.path] = (begun.get(source.path, "") + file.read()).split("\n")
                    if last and begun[source.path]:
                        lines.append(begun[source.path])
                    yield from _wanted(source, lines)
            if last:
                return
            time.sleep(LOOK_SECONDS)
    finally:
        for file in opened.values():
            file.close()


def _wanted(source: Source, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if source.begins is None or line.startswith(source.begins):
            yield source.prefix + line.removeprefix(source.begins or "").rstrip("\r")
