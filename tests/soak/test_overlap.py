"""What a reward server's time costs where it is asked early: `make soak ARGS="-k overlap -s"`."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from reward_models.client import HttpReward
from rlhf.config import RewardServerConfig
from rlhf.ppo.experience import Actors, collect
from rlhf.types import Prompt
from stages.bench import ours
from stages.bench.load import Load, models
from tests.test_early_scores import serving

pytestmark = pytest.mark.soak
LOAD = Load(size="2M", batch=64, micro=16, response_length=64, eos_bias=0.06, threads=1)
ROUNDS, SECONDS = 5, 1.0  # that the server takes for a whole batch


class Untimed:
    """In place of the bench's turns."""

    def timed(self, _: str, function: Any) -> Any:
        return function

    def phase(self, _: str) -> Any:
        return nullcontext()


class Numbers(ours.Tokens):
    """Prompts that are text, as a server wants them."""

    def prompt(self, number: Any) -> list[int]:
        return self.prompts[int(number.content)]


def cast_of(monkeypatch: pytest.MonkeyPatch) -> tuple[Actors, Any]:
    """The actors and settings of a bench's step."""
    kept: list[tuple[Actors, Any]] = []

    def keep(_: Any, __: Any, actors: Actors, config: Any, ___: Any) -> Any:
        kept.append((actors, config))
        raise InterruptedError

    monkeypatch.setattr(ours, "collect", keep)
    turns: Any = Untimed()
    with pytest.raises(InterruptedError):
        ours.prepare(LOAD, models(LOAD), "float32", turns)(1)
    actors, config = kept[0]
    tokens: Any = Numbers(LOAD.prompts())
    return replace(actors, tokenization=tokens), config


def test_a_slow_servers_time_passes_beside_the_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    actors, config = cast_of(monkeypatch)
    prompts, rows = [Prompt(str(row)) for row in range(LOAD.batch)], list(range(LOAD.batch))
    sample, ends = actors.generator.sample, []

    def timed(*given: Any, **named: Any) -> Any:
        sampled = sample(*given, **named)
        ends.append(time.perf_counter())
        return sampled

    monkeypatch.setattr(actors.generator, "sample", timed)
    behind: dict[bool, list[float]] = {True: [], False: []}  # seconds from the last token to the last score
    with serving(each=SECONDS / LOAD.batch) as server:
        for number in range(2 * ROUNDS + 2):
            reward = HttpReward(server.address, RewardServerConfig(), early=bool(number % 2))
            collect(prompts, rows, replace(actors, reward=reward), config, (0, number))
            if number > 1:  # the first of each warms up
                behind[reward.early].append(time.perf_counter() - ends[-1])
    early, late = (statistics.median(behind[way]) for way in (True, False))
    print(
        f"\nbehind sampling: {early:.2f} s, and {late:.2f} s where the server is asked then; it takes {SECONDS:.2f} s"
    )
    assert late - early > 0.5 * SECONDS
