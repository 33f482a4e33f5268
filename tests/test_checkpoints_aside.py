"""Asynchronous checkpoints: when they are written, in which order, and that each holds the step at which it was due."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interruption import EVERY_STEP, assert_same, own_copy, wait_for
from running import TINY, rlhf
from torch import nn
from waiting_checkpoints import ASIDE, killed_in_flight, standing, unfinished

from rlhf.beacons.collectives import ASIDE as ASIDE_GROUP
from rlhf.beacons.collectives import pending
from rlhf.config import CheckpointConfig
from rlhf.engine.ddp import DdpEngine
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.store.checkpoint import CheckpointStore, Retention
from stages.checkpoints import Checkpoints
from stages.signals import Signals

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def engine(seed: int) -> DdpEngine:
    """Two layers that learn."""
    torch.manual_seed(seed)
    options = OptimizerOptions(
        learning_rate=0.1, learning_rate_end=0.0, warmup_steps=2, total_steps=9, weight_decay=0.1, max_grad_norm=1.0
    )
    return DdpEngine(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), options)


def learn(learner: DdpEngine) -> None:
    learner.backward(learner(input=torch.ones(2, 3)).square().sum())
    learner.step()


def contents(learner: DdpEngine) -> dict[str, torch.Tensor]:
    """All that learns, by name, copied."""
    state = learner._state()
    parts = {"steps": state["steps"], **state["weights"]}
    for name, moments in state["optimizer"].items():
        parts |= {f"{name} {key}": moment for key, moment in moments.items()}
    return {name: part.clone() for name, part in parts.items()}


@pytest.mark.parametrize("steps", [0, 3])
def test_a_copy_stays_what_it_was_while_the_engine_learns_on(steps: int, tmp_path: Path) -> None:
    learner, other = engine(0), engine(1)
    for _ in range(steps):
        learn(learner)
    wanted, write = contents(learner), learner.snapshot()
    learn(learner)
    write(tmp_path / "copy")
    other.load(tmp_path / "copy")
    found = contents(other)
    assert found.keys() == wanted.keys()
    for name, part in wanted.items():
        assert torch.equal(found[name], part), name
    assert all(not torch.equal(part, wanted[name]) for name, part in contents(learner).items())


@dataclass
class Slow:
    """A state of one number, whose copies are written when they are let through; broken: they cannot be."""

    number: int = 0
    broken: bool = False
    gate: threading.Event = field(default_factory=threading.Event)

    def save(self, directory: Path) -> None:
        """Write it at once."""
        (directory / "number").write_text(str(self.number))

    def snapshot(self) -> Callable[[Path], None]:
        """What writes the present number later."""
        number, broken, gate = self.number, self.broken, self.gate

        def write(directory: Path) -> None:
            assert gate.wait(30)
            if broken:
                raise OSError("No space left on device")
            (directory / "number").write_text(str(number))

        return write


@dataclass
class Training:
    """Checkpoints, by a recipe's settings, of a stage that is not there."""

    folder: Path
    settings: dict[str, Any]
    state: Slow = field(default_factory=Slow)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = CheckpointConfig(**{"every_minutes": None, "asynchronous": True, **self.settings})
        self.store = CheckpointStore(self.folder, "own", Retention(9, None, True))
        self.context: Any = SimpleNamespace(
            recipe=SimpleNamespace(checkpoint=config),
            store=self.store,
            checkpoint=None,
            stop_after=None,
            signals=Signals(),
            shared_over={},
            progress_made=lambda: {"seconds": 0.0, "metrics_bytes": self.state.number},
            flush_figures=lambda: None,
            warn=self.said.append,
            say=self.said.append,
        )
        self.checkpoints = Checkpoints(self.context)

    def step(self, score: float | None = None, last: bool = False) -> None:
        """One more step."""
        self.state.number += 1
        self.checkpoints.after(self.state.number, self.state, score, last)

    def later(self, score: float | None = None, last: bool = False) -> threading.Thread:
        """One more step, in a thread, for it has to wait."""
        thread = threading.Thread(target=self.step, args=(score, last))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        return thread

    def let_through(self) -> None:
        """The disk is as fast as it should be."""
        self.state.gate.set()
        if self.checkpoints.in_flight:
            self.checkpoints.in_flight.result(30)

    @property
    def standing(self) -> list[int]:
        """The steps of all checkpoints, each of which holds the figures of its own step."""
        found = standing(self.folder)
        for step in found:
            directory = self.store.verified(self.store.final(step)).directory
            assert (directory / "number").read_text() == str(step)
            assert json.loads((directory / "checkpoint.json").read_text())["metrics_bytes"] == step
        return found


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    made: list[Training] = []

    def make(**settings: Any) -> Training:
        made.append(Training(tmp_path / "checkpoints", {"every_steps": 2, **settings}))
        return made[-1]

    yield make
    for each in made:
        each.let_through()


def test_steps_go_on_and_what_is_due_meanwhile_waits_for_the_first(training: Callable[..., Training]) -> None:
    own = training()
    for _ in range(4):  # 2 is in flight, 4 is put off
        own.step()
    wait_for(lambda: unfinished(own.folder) == [2])
    assert own.standing == []
    own.let_through()
    own.step()  # in place of 4
    own.let_through()
    assert own.standing == [2, 5]
    own.step()
    own.let_through()
    assert own.standing == [2, 5, 6]


def test_the_last_step_waits_for_what_is_in_flight(training: Callable[..., Training]) -> None:
    own = training()
    for _ in range(2):
        own.step()
    waiting = own.later(last=True)
    own.state.gate.set()
    waiting.join(30)
    assert own.standing == [2, 3] and own.checkpoints.in_flight is None


def test_what_is_kept_for_good_is_written_at_its_own_step(training: Callable[..., Training]) -> None:
    own = training(keep_every=4)
    for _ in range(3):
        own.step()
    waiting = own.later()
    own.state.gate.set()
    waiting.join(30)
    own.let_through()
    assert own.standing == [2, 4]


def test_the_best_is_the_best_above_what_is_in_flight(training: Callable[..., Training]) -> None:
    own = training(every_steps=None)
    own.step(score=1.0)
    waiting = own.later(score=0.5)
    own.state.gate.set()
    waiting.join(30)
    assert own.standing == [1] and own.checkpoints.best == 1.0
    own.step(score=2.0)
    own.let_through()
    assert own.standing == [1, 3]


def test_where_the_best_cannot_be_written_the_next_best_is(training: Callable[..., Training]) -> None:
    own = training(every_steps=None)
    own.state.broken = True
    own.step(score=1.0)
    waiting = own.later(score=0.5)
    own.state.broken = False
    own.state.gate.set()
    waiting.join(30)
    own.let_through()
    own.step()
    assert own.said == ["no checkpoint of step 1 (No space left on device); training goes on, the older ones stand"]
    assert own.standing == [2] and own.checkpoints.best == 0.5 and unfinished(own.folder) == []


def test_where_no_copy_can_be_made_each_step_waits(training: Callable[..., Training], tmp_path: Path) -> None:
    own = training()
    own.state.snapshot = lambda: None  # type: ignore[assignment,method-assign,return-value]
    for _ in range(4):
        own.step()
    assert own.standing == [2, 4]
    assert own.said == ["checkpoint.asynchronous: not under this strategy; each step waits for its checkpoint"]


def test_killed_while_one_is_in_flight_the_one_before_stands_and_goes_on_bit_for_bit(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    killed_in_flight(run)
    done = rlhf("ppo", str(TINY), EVERY_STEP, ASIDE, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from runs/tiny/ppo/checkpoints/step-000001" in done.stdout
    assert_same(run / "ppo", tiny_run / "ppo")
    assert unfinished(run / "ppo" / "checkpoints") == []


def test_the_watchdog_takes_no_writing_thread_for_a_rank_that_waits() -> None:
    def entry(group: str, number: int) -> dict[str, Any]:
        known = {
            "retired": False,
            "is_p2p": False,
            "state": "started",
            "input_sizes": [[1]],
            "process_group": ["1", group],
        }
        return {**known, "collective_seq_id": number, "profiling_name": "gloo:all_gather"}

    assert pending([entry(ASIDE_GROUP, 1)]) is None
    found = pending([entry(ASIDE_GROUP, 1), entry("default_pg", 7)])
    assert found is not None and found.number == 7
