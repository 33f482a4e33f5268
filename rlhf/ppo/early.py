"""Scores of responses that have ended, asked for while others are still sampled and models read them.

For rewards that cost this process nothing but waiting: servers, and functions of text where the recipe says that they
may be called from another thread. What is scored, and what the scores are, is the same as without. Which responses
share a request does not depend on the clock: a server that computes them together rounds by who they are.
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
from rlhf.errors import RewardAwayError
from rlhf.types import Completion, Reward, TextReward

PARTS = 4  # a request is about so large a share of the responses: many small ones cost more than few
PAUSE = 1.0  # seconds until a server that has not answered while others are sampled is asked again


def is_early(reward: Reward) -> TypeGuard[TextReward]:
    """Whether a reward may be asked from another thread, before all responses are there."""
    return bool(getattr(reward, "early", False))


class EarlyScores:
    """Asks some rewards, slice after slice: each server in a thread of its own, functions in one. Used as a context.

    rewards: by name. complete: what makes a completion of a row's tokens. rows: how many will end. ordered: whether
    they end in the same order whenever the same is sampled; a slice is then whoever has ended next, else fixed rows.
    """

    def __init__(
        self,
        rewards: Mapping[str, TextReward],
        complete: Callable[[int, Sequence[int]], Completion],
        rows: int,
        ordered: bool = True,
    ) -> None:
        self.rewards, self.complete = rewards, complete
        self.rows, self.ordered = rows, ordered
        self.size = max(1, rows // PARTS)
        self.slices: dict[int, dict[int, Completion]] = {}  # by number: completions by row
        self.number_of: dict[int, int] = {}  # a row's
        self.ready: list[int] = []  # in the order in which they are asked about
        self.found: dict[str, dict[int, tuple[Completion, Tensor]]] = {name: {} for name in rewards}
        self.closed, self.failed, self.closing = False, False, 0.0  # no more will end; since when
        self.error: BaseException | None = None
        self.changed = Condition()
        # Each thread has its own.
        self.device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        functions = {name: reward for name, reward in rewards.items() if not reward.patience}
        servers = [{name: reward} for name, reward in rewards.items() if reward.patience]
        self.groups: list[Mapping[str, TextReward]] = [*servers, functions] if functions else [*servers]
        # Nobody waits for them at the end of a process that has no use for their answers any more.
        self.threads = [
            Thread(target=self._work, args=(group,), name=f"asks {', '.join(group)}", daemon=True)
            for group in self.groups
        ]

    def __enter__(self) -> EarlyScores:
        """Begin."""
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """All have ended, or sampling has failed and nothing more is to be asked."""
        with self.changed:
            self.closed, self.failed, self.closing = True, kind is not None, time.monotonic()
            self.ready += [number for number in sorted(self.slices) if number not in self.ready]
            self.changed.notify_all()

    def ended(self, row: int, tokens: Sequence[int]) -> None:
        """A response has ended; see `rlhf.types.Generator`. Of a row that is sampled once more the last one counts."""
        completion = self.complete(row, tokens)
        with self.changed:
            number = self.number_of.setdefault(row, (len(self.number_of) if self.ordered else row) // self.size)
            own = self.slices.setdefault(number, {})
            if own.get(row) == completion:
                return
            own[row] = completion
            whole = min(self.size, self.rows - number * self.size)
            if len(own) == whole:
                self.ready.append(number)
                self.changed.notify_all()

    def scores(self, completions: Sequence[Completion]) -> dict[str, Tensor]:
        """Each reward's scores [batch] of all rows, once they are there. Raises what a reward has raised."""
        longest = max(
            max(reward.patience for reward in group.values()) + sum(reward.timeout for reward in group.values())
            for group in self.groups
        )
        with patient("waits for scores", max(self.closing + longest - time.monotonic(), 0.0)):
            for thread in self.threads:
                thread.join()
        if self.error is not None:
            raise self.error
        return {name: self._of(name, completions) for name in self.rewards}

    def _of(self, name: str, completions: Sequence[Completion]) -> Tensor:
        found, scores = self.found[name], torch.zeros(len(completions))
        # Of a row that nobody was told of, or whose text is another now, what was scored is nobody's.
        left = [row for row, completion in enumerate(completions) if found.get(row, (None,))[0] != completion]
        for row in set(range(len(completions))).difference(left):
            scores[row] = found[row][1]
        if left:
            scores[left] = self.rewards[name]([completions[row] for row in left])
        return scores

    @torch.no_grad()
    def _work(self, group: Mapping[str, TextReward]) -> None:
        try:
            if self.device is not None:
                torch.cuda.set_device(self.device)
            done = 0
            while batch := self._next(done):
                rows, completions = list(batch), list(batch.values())
                for name, reward in group.items():
                    scores = self._ask(reward, completions)
                    self.found[name] |= dict(zip(rows, zip(completions, scores, strict=True), strict=True))
                done += 1
        except BaseException as error:
            self.error = self.error or error  # raised where the scores are wanted
            self.failed = True  # nobody else goes on asking

    def _ask(self, reward: TextReward, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch]. Patience counts from where sampling is over: until then, one that is away is asked again."""
        while True:
            with self.changed:
                last = self.closed
                begin = self.closing if last else time.monotonic()
            try:
                return reward.scores(completions, begin + reward.patience)
            except RewardAwayError:
                if last or self.failed:
                    raise
                with self.changed:
                    self.changed.wait_for(lambda: self.closed, PAUSE)

    def _next(self, done: int) -> dict[int, Completion]:
        """The slice after so many, once all of it has ended; none: there will be no more."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.ready) > done)
            if self.failed or len(self.ready) <= done:
                return {}
            return dict(self.slices[self.ready[done]])
