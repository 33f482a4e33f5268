"""A line that counts while something takes long: after two seconds, and only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

T = TypeVar("T")

PATIENCE = 2.0  # seconds
STRIDE = 256  # items between two looks at the clock


def counted(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items themselves."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[count]}"), TimeElapsedColumn()
    started = time.monotonic()
    with ExitStack() as stack:
        progress = Progress(*columns, console=console, transient=True)
        task = progress.add_task(description, total=total, count="")
        shown = False
        for number, item in enumerate(items, start=1):
            yield item
            if number % STRIDE:
                continue
            if not shown and time.monotonic() - started > PATIENCE:
                stack.enter_context(progress)
                shown = True
            if shown:
                progress.update(task, count=f"{number:,}" + (f" of {total:,}" if total else ""))
