"""Where this process is: noted by its main thread in memory, read by the thread that keeps its beacon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

RAISED_IN = "rlhf_phase"  # of an exception: the innermost phase that it has left
LOAD = "load"  # until training begins
EVALUATE = "evaluate"  # the stage of that name, which loads as it goes
APART_AT_WILL = (LOAD, EVALUATE)  # parts of a stage in which ranks may be far apart for good reasons


class Signs:
    """The phase, the step and the waits that a process has announced. Each field is replaced whole, never changed."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A stage begins."""
        self.step = 0
        self.patience: tuple[tuple[str, float], ...] = ()  # what is done, and until when by this process's clock
        self.excused: float | None = None  # until when the last wait that was announced and left has counted
        self.change((LOAD,))

    def change(self, phases: tuple[str, ...]) -> None:
        """Be in another phase, the outermost first."""
        self.phases = phases
        self.since = time.monotonic()

    @property
    def phase(self) -> str:
        """The phases within the stage's loop, or the one around it."""
        phases = self.phases
        return "/".join(phases[1:] or phases)

    @property
    def loading(self) -> bool:
        """Whether ranks may be far apart in the part of the stage that this is, whatever its phase."""
        return self.phases[0] in APART_AT_WILL

    def patience_left(self, now: float) -> tuple[str, float]:
        """The longest wait that was announced and is not over: what it is, and the seconds left; 0 if there is none."""
        what, until = max(self.patience, key=lambda wait: wait[1], default=("", now))
        return (what, until - now) if until > now else ("", 0.0)

    def unannounced(self, now: float) -> float | None:
        """Seconds since the last announced wait ended or ran out, 0 within one; None where none was announced."""
        ends = [until for _, until in self.patience]
        if self.excused is not None:
            ends.append(self.excused)
        return max(now - max(ends), 0.0) if ends else None

    def left(self, until: float) -> None:
        """A wait that was announced until then is over, perhaps before."""
        ended = min(until, time.monotonic())
        self.excused = ended if self.excused is None else max(self.excused, ended)


SIGNS = Signs()  # a process has one place where it is, as it has one process group


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Inside, this process is in a phase of the stage; phases within phases are told apart."""
    outer = SIGNS.phases
    SIGNS.change((*outer, name))
    try:
        yield
    except BaseException as error:
        vars(error).setdefault(RAISED_IN, SIGNS.phase)  # by the time somebody asks, the phase is over
        raise
    finally:
        SIGNS.change(outer)


def enter(name: str) -> None:
    """From now on, this process is in this part of the stage: load, train, finish."""
    SIGNS.change((name,))


def at_step(step: int) -> None:
    """The step that is being made, counted from 1."""
    SIGNS.step = step


@contextmanager
def patient(what: str, seconds: float) -> Iterator[None]:
    """Inside, the other ranks may wait for this one so long: it is neither apart nor a reason to end the stage.

    what: a verb and its object, as in "writes a checkpoint".
    """
    outer, until = SIGNS.patience, time.monotonic() + seconds
    SIGNS.patience = (*outer, (what, until))
    try:
        yield
    finally:
        SIGNS.left(until)  # before it is gone from the list: between the two, somebody may look
        SIGNS.patience = outer
