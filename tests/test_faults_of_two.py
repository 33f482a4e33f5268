"""Something that is not finite on one of two processes: both skip the same, by DDP and by FSDP, and neither waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from rlhf.config import ParallelismConfig
from rlhf.distributed import rank
from rlhf.ppo.experience import collect, own_rows
from rlhf.ppo.safety import is_sound
from rlhf.ppo.targets import find_targets
from rlhf.ppo.update import update
from rlhf.sharding import own_part
from tests.cast import CONFIG, KEY, KL_COEF, PROMPTS, Cast, load_cast, save_cast, step, weights
from tests.test_safety import spoil_gradient, spoil_values
from tests.two_ranks import chosen, two_ranks

SECONDS = 400.0
STRATEGIES = ("ddp", "fsdp", "zero1", "zero2", "zero3")


Plant = Callable[[Cast], RemovableHandle | None]


def of_rank_1(plant: Plant) -> Plant:
    return lambda cast: plant(cast) if rank() == 1 else None


# What breaks, and the names that each rank then has of it.
WAYS: dict[str, tuple[Plant, list[list[str]]]] = {
    "nothing": (lambda cast: None, [[], []]),
    # Rank 1 sees its own NaN in the sum of both, as rank 0 does.
    "the policy's gradient": (
        of_rank_1(lambda cast: spoil_gradient(cast.policy.module, 1, math.nan)),
        [["policy/grad_norm"], ["policy/grad_norm"]],
    ),
    "the value's gradient": (
        of_rank_1(lambda cast: spoil_gradient(cast.models["value"], 1, math.inf)),
        [["value/grad_norm"], ["value/grad_norm"]],
    ),
    "a loss": (
        of_rank_1(spoil_values),
        [["loss/value"], ["loss/value"]],
    ),  # rows are dealt out: either may learn from it
    "a score": (lambda cast: None, [[], ["scores"]]),
}


@dataclass(frozen=True)
class Outcome:
    """What a rank has of a step."""

    names: list[str] | None  # what it found; None where the step was sound
    moved: list[str]  # the models that have learned
    weights: Tensor
    then: dict[str, float]  # the figures of a sound step behind it
    schedule: int
    sound: bool


def play(folder: Path, strategy: str, way: str) -> Outcome:
    config = CONFIG.model_copy(update={"micro_batch_tokens": 10_000})
    parallelism = ParallelismConfig(strategy=strategy)  # type: ignore[arg-type]
    cast = load_cast(folder, config, parallelism=parallelism)
    rows = own_rows(config)
    experience, _ = collect([PROMPTS[row] for row in rows], rows, cast.actors, config, KEY)
    sound = experience
    if way == "a score" and rank() == 1:
        scores = experience.scores.clone().index_fill(0, torch.tensor([0]), math.nan)
        experience = replace(experience, scores=scores)
    targets = find_targets(experience, config, KL_COEF, None)
    models = {"policy": cast.policy.module, "value": cast.models["value"]}
    before = {name: weights(model) for name, model in models.items()}
    planted = WAYS[way][0](cast)
    fault = update(cast.policy, cast.value, experience, targets, config, KEY).fault
    after = {name: weights(model) for name, model in models.items()}
    moved = [name for name in models if not torch.equal(before[name], after[name])]
    if planted:
        planted.remove()
    # Nothing of the fault is left in a gradient; several micro-batches, of which each adds to it.
    again = config.model_copy(update={"micro_batch_tokens": 20})
    then = update(cast.policy, cast.value, sound, find_targets(sound, config, KL_COEF, None), again, KEY)
    assert then.fault is None
    healthy = is_sound(cast.policy, [5, 6, 7])
    if rank() == 1:  # one shard of one weight
        with torch.no_grad():
            parameter = next(cast.policy.module.parameters())
            own_part(parameter)[-1] = math.nan
    assert not is_sound(cast.policy, [5, 6, 7])
    names = None if fault is None else list(fault.found)
    engine: Any = cast.policy
    steps = engine.steps if strategy.startswith("zero") else engine.schedule.last_epoch
    return Outcome(names, moved, torch.cat(list(after.values())), then.statistics, steps, healthy)


def play_all(folder: Path, strategies: list[str]) -> dict[tuple[str, str], Outcome]:
    return {(strategy, way): play(folder, strategy, way) for strategy in strategies for way in WAYS}


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[Any, Outcome]]]:
    """Of each rank, of the strategies whose tests were chosen."""
    folder, asked = save_cast(tmp_path_factory.mktemp("cast")), chosen(request, "strategy")
    with two_ranks(play_all, folder, [strategy for strategy in STRATEGIES if strategy in asked], SECONDS) as both:
        pass
    yield both


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The figures of one process's first step."""
    cast = load_cast(save_cast(tmp_path_factory.mktemp("alone")))
    return step(cast, PROMPTS, range(len(PROMPTS))).statistics


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(each, marks=pytest.mark.soak if "zero" in each else ()) for each in STRATEGIES],
)
def test_both_skip_what_one_has_and_stay_equal(
    outcomes: list[dict[Any, Outcome]], alone: dict[str, float], strategy: str, way: str
) -> None:
    first, second = (outcome[strategy, way] for outcome in outcomes)
    assert torch.equal(first.weights, second.weights) and first.weights.isfinite().all()
    if way == "nothing":
        assert first.names is second.names is None and first.moved == second.moved == ["policy", "value"]
    else:
        assert [first.names, second.names] == WAYS[way][1]
        # The value model comes first: what the policy's gradient has is found behind its update.
        assert first.moved == second.moved == (["value"] if way == "the policy's gradient" else [])
    assert first.schedule == second.schedule == 2 * CONFIG.epochs * CONFIG.minibatches
    if way != "nothing":  # as if it were the first: each norm is that of a single process that met no fault
        assert first.then == second.then
        same = {name for name in alone if "value" not in name or "value" not in first.moved}
        found, wanted = ({name: each[name] for name in same} for each in (first.then, alone))
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert first.sound and second.sound  # and no longer, once one weight of rank 1 is spoiled: asserted there
