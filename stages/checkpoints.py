"""When a training stage writes checkpoints, and when it ends early: decided by all ranks together.

checkpoints = context.checkpoints()
start = checkpoints.restore(load)              # 0, or the step after which the newest valid checkpoint was written
with checkpoints.training():
    for step in range(start + 1, steps + 1):
        ...
        checkpoints.after(step, state, score)  # raises Stopped once a signal or --stop-after says so

With `checkpoint.asynchronous` a thread writes a copy of the state while steps go on, up to the commit, over a process
group of its own: one at a time. The next checkpoint waits for it, and so do the last step and the end of the stage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError

from rlhf.beacons import patient, phase
from rlhf.distributed import barrier, device, gather_objects, global_max, group_aside, is_main, patient_group
from rlhf.engine import Writer
from rlhf.errors import RLHFError
from rlhf.store.checkpoint import Checkpoint
from stages.signals import RESUMABLE, Stopped

if TYPE_CHECKING:
    from stages.context import StageContext

PATIENCE_SECONDS = 3600.0  # at some 0.7 GB/s one rank compares 2 TB with their checksums
NOTHING, SAVE, END = range(3)  # what ranks ask for; the largest wins


class State(Protocol):
    """The complete state of a stage between two steps. Every rank makes the same calls."""

    def save(self, directory: Path) -> None:
        """Write it below a directory."""
        ...

    def snapshot(self) -> Writer | None:
        """A copy of it that another thread can write; None where that cannot be."""
        ...


class Outcome(NamedTuple):
    """What has become of a checkpoint, on every rank alike."""

    step: int
    score: float | None
    checkpoint: Checkpoint | None
    cause: str | None  # why there is none


class Checkpoints:
    """The checkpoints of one execution of a stage. All ranks call the same methods in the same order."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.config = context.recipe.checkpoint
        self.store = context.store
        self.newest: Checkpoint | None = context.checkpoint
        self.best = self.store.best_score() if is_main() else None
        self.written_at = time.monotonic()
        self.faults_in_a_row = 0  # of PPO, up to the present step
        self.in_flight: Future[Outcome] | None = None
        self.postponed = False  # one was due while another was in flight

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
            try:
                yield
            except (RLHFError, OSError, SafetensorError):  # the stage ends in order, on all ranks
                attempt(self.settle)
                raise
            self.settle()  # behind a faulty last step one may still be in flight

    def after(self, step: int, state: State, score: float | None = None, last: bool = False) -> None:
        """A step is done: write a checkpoint if one is due, then end the stage if that was asked for.

        score: held-out, higher is better; None where nothing was evaluated at this step. last: no step follows. Raises
        Stopped.
        """
        demand = self.demand(step, score, last)
        streak = {"faults_in_a_row": self.faults_in_a_row} if self.faults_in_a_row else {}
        record = {"score": score, "last": last, **streak}
        if demand == SAVE and not last and self.config.asynchronous:
            self.write_aside(step, state, record)
        elif demand:
            self.write(step, state.save, record)
        if demand == END:
            self.end(step)

    def demand(self, step: int, score: float | None = None, last: bool = False) -> int:
        """What all ranks together ask for after a step: NOTHING, SAVE, or END, which saves too.

        Behind a faulty step nothing is due but the end, or a policy that has proved the best; SIGUSR1 waits.
        """
        # It is the best only above what is in flight, if that stands. All wait for it: in a collective they time out.
        judged = self.config.asynchronous and self.config.keep_best and score is not None
        if judged and global_max(int(is_main() and self._is_best(score))):
            self.settle()
        signals, asked = self.context.signals, False
        if self.in_flight and self.in_flight.done():
            self.settle()
        if not self.faults_in_a_row:
            asked = signals.take_checkpoint()
        mine = SAVE if self._due(step, score, last) or asked else NOTHING
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
        self.settle()
        with at_work():
            self._conclude(self._carry_out(step, save, self._account(record)))
            self._written()
            barrier()

    def write_aside(self, step: int, state: State, record: Mapping[str, Any]) -> None:
        """`write` in another thread, once the one before is done; returns when all that it needs has been copied."""
        self.settle()
        account, group = self._account(record), group_aside()
        made: list[Writer | None] = []
        with at_work():
            cause = first(gather_objects(attempt(lambda: made.append(state.snapshot()))))  # memory may be short
        if cause is not None:
            self._conclude(Outcome(step, None, None, cause))
        elif (copy := made[0]) is None:
            self.config = self.config.model_copy(update={"asynchronous": False})
            self.context.say("checkpoint.asynchronous: not under this strategy; each step waits for its checkpoint")
            self.write(step, state.save, record)
        else:
            self.in_flight = aside(lambda: self._carry_out(step, copy, account, group))
        self._written()

    def settle(self) -> None:
        """Wait for the checkpoint in flight, if there is one, and take its outcome into account."""
        if self.in_flight:
            done, self.in_flight = self.in_flight, None
            with at_work():
                outcome = done.result()
            self._conclude(outcome)

    def _account(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {**record, **self.context.progress_made(), **self.context.shared_over}

    def _carry_out(
        self, step: int, save: Callable[[Path], None], account: Mapping[str, Any], group: Any = None
    ) -> Outcome:
        """Write and commit; every rank calls, and all collectives are the group's, or of one that is as patient."""
        group = group or patient_group()  # the main rank reads all files once more, alone
        partial, main = self.store.partial(step), is_main()
        made: list[Checkpoint] = []

        def commit() -> None:
            self.context.flush_figures()
            made.append(self.store.commit(step, account))

        # Each part is done by all ranks or by the main one, and all learn of a failure anywhere before the next.
        cause = first(gather_objects(attempt(lambda: self.store.begin(step)) if main else None, group))
        cause = cause or first(gather_objects(attempt(lambda: save(partial)), group))
        cause = cause or first(gather_objects(attempt(commit) if main else None, group))
        if cause is not None and main:
            attempt(lambda: self.store.abandon(step))
        checkpoint = first(gather_objects(made[0] if made else None, group))
        return Outcome(step, account["score"], checkpoint, cause)

    def _conclude(self, outcome: Outcome) -> None:
        self.newest = outcome.checkpoint or self.newest
        if outcome.cause is not None:
            kept = "training goes on, the older ones stand"
            self.context.warn(f"no checkpoint of step {outcome.step} ({outcome.cause}); {kept}")
        elif self._is_best(outcome.score):
            self.best = outcome.score

    def _written(self) -> None:
        self.written_at = time.monotonic()
        self.postponed = False

    def _due(self, step: int, score: float | None, last: bool) -> bool:
        if not is_main():
            return False
        every, minutes, keep = self.config.every_steps, self.config.every_minutes, self.config.keep_every
        elapsed = (time.monotonic() - self.written_at) / 60
        better = self.config.keep_best and self._is_best(score)
        if self.faults_in_a_row:
            return better
        due = self.postponed or bool(every and step % every == 0) or bool(minutes and elapsed >= minutes)
        # A disk that is slower than the recipe thinks slows no step: what is due by the clock waits for the next one.
        self.postponed = due and self.in_flight is not None and not (keep and step % keep == 0)
        return last or better or (due and not self.postponed)

    def _is_best(self, score: float | None) -> bool:
        return score is not None and (self.best is None or score > self.best)


@contextmanager
def at_work() -> Iterator[None]:
    """The loop stands still for a checkpoint, and the other ranks may have to wait for this one."""
    with phase("checkpoint"), patient("writes a checkpoint", PATIENCE_SECONDS):
        yield


def aside(work: Callable[[], Outcome]) -> Future[Outcome]:
    """Have another thread do some work. A process that ends does not wait for it: its peers may be gone."""
    outcome: Future[Outcome] = Future()

    def run() -> None:
        try:
            if device().type == "cuda":  # a thread begins on the first GPU, whichever is this process's
                torch.cuda.set_device(device())
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return outcome


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
