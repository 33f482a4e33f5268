"""Progress for people: a bar with the time left and the figures that matter, or plain lines where no terminal is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0
WIDTH_OF_ALL = 110  # of a terminal in which all columns have room; in a narrower one the bar gives way
WIDTH_OF_TABLES = 120
NO_KL = 1e-4  # nats; less is rounding


def columns(width: int) -> list[ProgressColumn]:
    """What stands in a line of a terminal: figures and times rather than a bar where not all has room."""
    bar = [BarColumn(bar_width=24)] if width >= WIDTH_OF_ALL else []
    return [
        TextColumn("[bold]{task.description}"),
        *bar,
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    ]


def wide_console() -> Console:
    """A console for tables: whoever reads a file or a pipe has room; a narrow terminal has not, and wraps."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_OF_TABLES)


def shown(figures: Mapping[str, float]) -> str:
    """Figures in a line."""
    rounded = {name: 0.0 if name.endswith("kl") and abs(value) < NO_KL else value for name, value in figures.items()}
    return "  ".join(f"{name} {value:.3g}" for name, value in rounded.items())


class StageProgress:
    """The progress of one stage; `enabled=False` (other ranks) shows nothing."""

    def __init__(self, title: str, total: int, enabled: bool = True, done: int = 0) -> None:
        self.title = title
        self.done = done  # by an execution before this one
        self.total = total
        self.enabled = enabled
        self.console = Console()
        self.started = self.last_line = time.monotonic()
        self.bar = Progress(
            *columns(self.console.width),
            console=self.console,
            disable=not enabled or not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, completed=done, figures="")

    def __enter__(self) -> StageProgress:
        """Start the display."""
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display, whatever happened."""
        self.bar.stop()

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        """Show that `step` steps are done, and some figures."""
        line = shown(figures)
        self.bar.update(self.task, completed=step, figures=line)
        if not self.enabled or self.console.is_terminal:
            return
        now = time.monotonic()
        if step == self.total or now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.started) / max(step - self.done, 1) * (self.total - step)
            self.console.print(
                f"{self.title} {step}/{self.total}  left {left:.0f} s  {line}", highlight=False, soft_wrap=True
            )


@contextmanager
def counter(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """What tells a bar on stderr how many more are done; it is gone behind the end, and shows on terminals alone."""
    console = Console(stderr=True)
    bar = Progress(*columns(console.width), console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(title, total=total, figures="")
    with bar:
        yield lambda more: bar.advance(task, more)
