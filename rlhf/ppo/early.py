"""Scores of responses that have ended, asked for while others are still sampled and models read them.

For rewards that cost this process nothing but waiting: servers, and functions of text where the recipe says that they
may be called from another thread. What is scored, and what the scores are, is the same as without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Thread
from types import TracebackType
from typing import TypeGuard

import torch
from torch import Tensor

from rlhf.beacons import patient
from rlhf.types import Completion, Reward, TextReward

PARTS = 4  # a request waits until so large a share of the responses has ended: many small ones cost more than few


def is_early(reward: Reward) -> TypeGuard[TextReward]:
    """Whether a reward may be asked from another thread, before all responses are there."""
    return bool(getattr(reward, "early", False))


class EarlyScores:
    """One thread that asks some rewards, batch after batch. Used as a context around what samples.

    rewards: by name. complete: what makes a completion of a row's tokens. rows: how many will end.
    """

    def __init__(
        self, rewards: Mapping[str, TextReward], complete: Callable[[int, Sequence[int]], Completion], rows: int
    ) -> None:
        self.rewards, self.complete = rewards, complete
        self.enough = max(1, rows // PARTS)
        self.waiting: list[tuple[int, Completion]] = []
        self.found: dict[str, dict[int, tuple[Completion, Tensor]]] = {name: {} for name in rewards}
        self.closed, self.deadline = False, 0.0  # no more will end; by when all must be scored then
        self.error: BaseException | None = None
        self.changed = Condition()
        # Nobody waits for it at the end of a process that has no use for its answers any more.
        self.thread = Thread(target=self._work, name="scores what has ended", daemon=True)

    def __enter__(self) -> EarlyScores:
        """Begin."""
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """All have ended, or sampling has failed and nothing more is to be asked."""
        with self.changed:
            self.closed = True
            self.deadline = time.monotonic() + max(reward.patience for reward in self.rewards.values())
            if kind is not None:
                self.waiting.clear()
            self.changed.notify()

    def ended(self, row: int, tokens: Sequence[int]) -> None:
        """A response has ended; see `rlhf.types.Generator`."""
        completion = self.complete(row, tokens)
        with self.changed:
            self.waiting.append((row, completion))
            self.changed.notify()

    def scores(self, completions: Sequence[Completion]) -> dict[str, Tensor]:
        """Each reward's scores [batch] of all rows, once they are there. Raises what a reward has raised."""
        left, last = self.deadline - time.monotonic(), sum(reward.timeout for reward in self.rewards.values())
        with patient("waits for scores", max(left, 0.0) + last):
            self.thread.join()
            if self.error is not None:
                raise self.error
            return {name: self._of(name, completions) for name in self.rewards}

    def _of(self, name: str, completions: Sequence[Completion]) -> Tensor:
        found, scores = self.found[name], torch.zeros(len(completions))
        # A server that lost its weights has sampled another response since, and the first one's score is nobody's.
        left = [row for row, completion in enumerate(completions) if found.get(row, (None,))[0] != completion]
        for row in set(range(len(completions))).difference(left):
            scores[row] = found[row][1]
        if left:
            scores[left] = self.rewards[name].scores([completions[row] for row in left], self.deadline)
        return scores

    @torch.no_grad()
    def _work(self) -> None:
        try:
            while batch := self._next():
                rows, completions = [row for row, _ in batch], [completion for _, completion in batch]
                for name, reward in self.rewards.items():
                    deadline = self.deadline if self.closed else time.monotonic() + reward.patience
                    scores = reward.scores(completions, deadline)
                    self.found[name] |= dict(zip(rows, zip(completions, scores, strict=True), strict=True))
        except BaseException as error:
            self.error = error  # raised where the scores are wanted

    def _next(self) -> list[tuple[int, Completion]]:
        """Responses that nobody has asked about, once they are many or the last; none: there will be no more."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.waiting) >= self.enough)
            batch, self.waiting = self.waiting, []
            return batch
