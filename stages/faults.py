"""What PPO does about a step in which something was not finite: keep its batch, say so, count, and stop after too many.

    STAGE/faults/step-000012/rank-0.safetensors   tokens, masks, log-probs, values, scores of that rank's rows
                             rank-0.jsonl         prompt, response, score, and what is not finite where

Written by the ranks that have the fault, each file whole or not at all, and only of the newest steps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from rlhf.beacons import patient
from rlhf.distributed import gather_objects, is_main, patient_group, rank
from rlhf.engine import Engine
from rlhf.errors import FaultError
from rlhf.ppo.safety import Breaker, Fault, is_sound
from rlhf.store.artifact import remove, write_text
from rlhf.store.checkpoint import Checkpoint
from rlhf.types import Completion, Experience
from stages.checkpoints import PATIENCE_SECONDS, Checkpoints, attempt
from stages.context import StageContext

NAMED = 3  # ranks that a line names


class Note(NamedTuple):
    """What one rank has of a fault."""

    rank: int
    names: tuple[str, ...]  # what is not finite
    text: str


class Faults:
    """The faults of one execution of PPO. All ranks call the same methods in the same order."""

    def __init__(self, context: StageContext, checkpoints: Checkpoints) -> None:
        self.context = context
        self.checkpoints = checkpoints
        self.config = context.recipe.ppo.faults
        self.breaker = Breaker(self.config.limit)
        self.notes: list[Note] = []  # of the last fault, rank by rank

    def count(
        self, step: int, fault: Fault | None, experience: Experience, completions: Sequence[Completion]
    ) -> dict[str, float]:
        """Take in a step; what it had that was not finite is kept and said. The figures to log."""
        self.breaker.count(fault is not None)
        self.checkpoints.faults_in_a_row = self.breaker.in_a_row
        if fault is not None:
            mine = self._note(step, fault, experience, completions) if fault.found else None
            self.notes = [note for note in gather_objects(mine) if note]
            self.context.warn(f"{fault.part}step {step} is skipped, for something is not finite: {said(self.notes)}")
        return self.breaker.figures()

    def stop_after_too_many(self, step: int) -> None:
        """Raise FaultError on all ranks once `ppo.faults.limit` steps in a row were faulty."""
        if self.breaker.is_open:
            names = {name for note in self.notes for name in note.names}
            of_reward = all(name.startswith("scores") for name in names)
            raise FaultError(
                f"ppo.faults.limit={self.config.limit}: step {step} was the last of so many in a row in which "
                f"something was not finite: {said(self.notes)}; {self._remedy(of_reward)}"
            )

    def require_sound(self, step: int, policy: Engine, tokens: Sequence[int]) -> None:
        """Raise FaultError where a policy that is to be handed on gives what is not finite."""
        if not is_sound(policy, tokens):
            raise FaultError(f"the policy after step {step} gives what is not finite; {self._remedy(of_reward=False)}")

    def _remedy(self, of_reward: bool) -> str:
        """Where to go on from, and how; checkpoints from among faulty steps are set aside. A collective."""
        attempt(self.checkpoints.settle)
        found: list[Checkpoint | None] = []
        with patient("verifies checkpoints", PATIENCE_SECONDS):
            if is_main():
                attempt(lambda: found.append(self.context.store.newest_good(self.context.warn)))
        good = gather_objects(found[0] if found else None, patient_group())[0]
        if good:
            there = f"the last good checkpoint is {good.directory}, from which the same command goes on"
        else:
            there = "there is no good checkpoint yet, and the same command starts again"
        cause = "mend the reward" if of_reward else "a lower ppo.learning_rate is the usual remedy, from the beginning"
        return f"{there}; {cause}"

    def _note(self, step: int, fault: Fault, experience: Experience, completions: Sequence[Completion]) -> Note:
        rows = len(experience.rows)
        parts = [f"{name} of {rows_with(where)} of {rows} responses" for name, where in fault.found.items()]
        text = f"rank {rank()}, {', '.join(parts)}"
        if self.config.keep:
            file = self.context.output / "faults" / f"step-{step:06d}" / f"rank-{rank()}.safetensors"
            cause = attempt(lambda: self._keep(file, fault, experience, completions))
            text += f" (not kept: {cause})" if cause else f" (kept in {file})"
        return Note(rank(), tuple(fault.found), text)

    def _keep(self, file: Path, fault: Fault, experience: Experience, completions: Sequence[Completion]) -> None:
        """Write a rank's batch, then remove those of the oldest steps."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        save_file(tensors_of(experience), partial)
        partial.replace(file)
        lines = [json.dumps(row, allow_nan=False) for row in rows_of(experience, completions, fault.found)]
        write_text(file.with_suffix(".jsonl"), "".join(f"{line}\n" for line in lines))
        # By age, not by step: a run that went back writes smaller steps after larger ones.
        steps = sorted(file.parent.parent.glob("step-*"), key=lambda path: os.stat(path).st_mtime_ns)
        for step in steps[: -self.config.keep]:
            with suppress(FileNotFoundError):  # another rank with a fault removes the same ones
                remove(step)


def said(notes: Sequence[Note]) -> str:
    """What some ranks have, for people."""
    more = f"; and {len(notes) - NAMED} more ranks" if len(notes) > NAMED else ""
    return "; ".join(note.text for note in notes[:NAMED]) + more


def rows_with(where: Tensor) -> int:
    """How many rows of [batch] or [batch, response] have True anywhere."""
    return int(where.flatten(1).any(1).sum()) if where.ndim > 1 else int(where.sum())


def tensors_of(experience: Experience) -> dict[str, Tensor]:
    """All tensors of an experience, by the names of its fields."""
    named = {each.name: getattr(experience, each.name) for each in fields(experience) if each.name != "terms"}
    named |= {f"scores_{name}": scores for name, scores in experience.terms.items()}
    return {name: tensor.contiguous() for name, tensor in named.items()}


def rows_of(
    experience: Experience, completions: Sequence[Completion], found: Mapping[str, Tensor]
) -> Iterator[dict[str, Any]]:
    """Each row for people: what is not finite is named with its response tokens, counted from 0, where it has some."""
    for i, (completion, score) in enumerate(zip(completions, experience.scores.tolist(), strict=True)):
        where = {
            name: flags[i].nonzero().flatten().tolist() if flags.ndim > 1 else True
            for name, flags in found.items()
            if flags[i].any()
        }
        yield {
            "row": int(experience.rows[i]),
            "prompt": completion.prompt.text,
            "response": completion.response,
            "score": score if math.isfinite(score) else str(score),  # JSON has no nan and no infinity
            "not_finite": where,
        }
