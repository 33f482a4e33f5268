"""When a training stage writes checkpoints, and when it ends early: decided by all ranks together.

checkpoints = context.checkpoints()
start = checkpoints.restore(load)              # 0, or the step after which the newest valid checkpoint was written
with checkpoints.training():
    for step in range(start + 1, steps + 1):
        ...
        checkpoints.after(step, save, score)   # raises Stopped once a signal or --stop-after says so
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rlhf.beacons import patient, phase
from rlhf.distributed import barrier, gather_objects, global_max, is_main
from rlhf.store.checkpoint import Checkpoint
from stages.signals import RESUMABLE, Stopped

if TYPE_CHECKING:
    from stages.context import StageContext

PATIENCE_SECONDS = 600.0  # of a collective's timeout: after it, torch itself ends the wait
NOTHING, SAVE, END = range(3)  # what ranks ask for; the largest wins


class Checkpoints:
    """The checkpoints of one execution of a stage. All ranks call the same methods in the same order."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.config = context.recipe.checkpoint
        self.store = context.store
        self.newest: Checkpoint | None = context.checkpoint
        self.best = self.store.best_score() if is_main() else None
        self.written_at = time.monotonic()

    @property
    def start(self) -> int:
        """The step after which training goes on."""
        return self.newest.step if self.newest else 0

    def restore(self, load: Callable[[Path], None]) -> int:
        """Load the newest valid checkpoint if there is one; the step after which training goes on."""
        if self.newest:
            load(self.newest.directory)
            if self.context.stop_after is not None and self.start >= self.context.stop_after:
                self.end(self.start)
        return self.start

    def surpass(self, score: float | None) -> None:
        """A checkpoint is the best only above the score of what training started from, which stands elsewhere."""
        if self._is_best(score):
            self.best = score

    @contextmanager
    def training(self) -> Iterator[None]:
        """While steps are made, signals wait for `after`."""
        self.written_at = time.monotonic()
        with self.context.signals.deferred():
            yield

    def after(self, step: int, save: Callable[[Path], None], score: float | None = None, last: bool = False) -> None:
        """A step is done: write a checkpoint if one is due, then end the stage if that was asked for.

        save: writes the complete state into a directory; every rank calls it. score: held-out, higher is better;
        None where nothing was evaluated at this step. last: no step follows. Raises Stopped.
        """
        demand = self.demand(step, score, last)
        if demand:
            self.write(step, save, {"score": score, "last": last})
        if demand == END:
            self.end(step)

    def demand(self, step: int, score: float | None = None, last: bool = False) -> int:
        """What all ranks together ask for after a step: NOTHING, SAVE, or END, which saves too."""
        signals = self.context.signals
        mine = SAVE if self._due(step, score, last) or signals.take_checkpoint() else NOTHING
        if signals.stop or (self.context.stop_after is not None and step >= self.context.stop_after):
            mine = END
        return global_max(mine)  # clocks and the moments of signals differ between ranks

    def end(self, step: int) -> None:
        """Raise Stopped with the reason."""
        # The signal may have reached another rank alone.
        reasons = [signal.name for signal in gather_objects(self.context.signals.stop) if signal]
        kept = f"the checkpoint of step {self.newest.step} stands" if self.newest else "no checkpoint could be written"
        if reasons:
            raise Stopped(f"{reasons[0]} after step {step}; {kept}", RESUMABLE)
        raise Stopped(f"--stop-after {step}; {kept}", 0)

    def write(self, step: int, save: Callable[[Path], None], record: Mapping[str, Any]) -> None:
        """Write a checkpoint; where that fails, on a full disk for example, the cause is said and the older ones stay.

        record: goes into the checkpoint's own account, with the `score` and whether this is the `last` step.
        """
        with phase("checkpoint"), patient("writes a checkpoint", PATIENCE_SECONDS):
            self._write(step, save, record)

    def _write(self, step: int, save: Callable[[Path], None], record: Mapping[str, Any]) -> None:
        partial = self.store.partial(step)
        made: list[Checkpoint] = []

        def commit() -> None:
            meta = {**record, **self.context.progress_made(), **self.context.shared_over}
            made.append(self.store.commit(step, meta))

        # Each part is done by all ranks or by the main one, and all learn of a failure anywhere before the next.
        main = is_main()
        cause = first(gather_objects(attempt(lambda: self.store.begin(step)) if main else None))
        cause = cause or first(gather_objects(attempt(lambda: save(partial))))
        cause = cause or first(gather_objects(attempt(commit) if main else None))
        self.newest = first(gather_objects(made[0] if made else None)) or self.newest
        if cause is not None:
            if is_main():
                attempt(lambda: self.store.abandon(step))
            self.context.warn(f"no checkpoint of step {step} ({cause}); training goes on, the older ones stand")
        elif self._is_best(record["score"]):
            self.best = record["score"]
        self.written_at = time.monotonic()
        barrier()

    def _due(self, step: int, score: float | None, last: bool) -> bool:
        if not is_main():
            return False
        every, minutes = self.config.every_steps, self.config.every_minutes
        elapsed = (time.monotonic() - self.written_at) / 60
        better = self.config.keep_best and self._is_best(score)
        return last or better or bool(every and step % every == 0) or bool(minutes and elapsed >= minutes)

    def _is_best(self, score: float | None) -> bool:
        return score is not None and (self.best is None or score > self.best)


def attempt(work: Callable[[], Any]) -> str | None:
    """Do something that may fail on a bad disk; the cause on one line, None if it went well."""
    try:
        work()
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors do not raise OSError
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def first(values: list[Any]) -> Any:
    """The first value that is not None, or None."""
    return next((value for value in values if value is not None), None)
