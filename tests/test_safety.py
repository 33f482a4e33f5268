"""What is not finite in a step of PPO: found under the mask alone, counted, and learned from by neither model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlhf.engine import Engine
from rlhf.ppo import update
from rlhf.ppo.safety import Breaker, examine, examine_minibatch, is_sound
from rlhf.ppo.targets import Targets, find_targets
from rlhf.types import Experience
from tests.cast import CONFIG, KEY, PROMPTS, Cast, load_cast, save_cast, step, weights
from tests.experiences import experience_of, random_rows, settings_of

LENGTHS = (3, 1, 5)


def rollout(poison: float = math.nan) -> tuple[Experience, Targets]:
    """A sound one, with what is not finite behind each response."""
    experience = experience_of(random_rows(LENGTHS, seed=0), poison)
    experience = replace(experience, terms={"a": torch.zeros(3), "b": torch.zeros(3)})
    return experience, find_targets(experience, settings_of("gae", prompts_per_step=3), 0.1, None)


def test_what_stands_behind_a_response_is_no_fault() -> None:
    for poison in (math.nan, math.inf):
        assert examine(*rollout(poison)) is None


@pytest.mark.parametrize("kind", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["old_logprobs", "sampler_logprobs", "ref_logprobs", "values"])
def test_a_token_that_is_not_finite_is_found(field: str, kind: float) -> None:
    experience, targets = rollout()
    getattr(experience, field)[2, 4] = kind
    fault = examine(experience, targets)
    assert fault is not None and list(fault.found) == [field]
    assert fault.found[field].nonzero().tolist() == [[2, 4]]


@pytest.mark.parametrize("field", ["scores", "scores_b"])
def test_a_score_that_is_not_finite_is_found(field: str) -> None:
    experience, targets = rollout()
    (experience.scores if field == "scores" else experience.terms["b"])[1] = math.nan
    fault = examine(experience, targets)
    assert fault is not None and {name: where.tolist() for name, where in fault.found.items()} == {
        field: [False, True, False]
    }


def test_targets_are_at_fault_only_where_the_rollout_is_not() -> None:
    """Whitening spreads one row's fault over all, on every rank."""
    experience, _ = rollout()
    experience.scores[0] = math.nan
    spread = find_targets(experience, settings_of("gae", prompts_per_step=3), 0.1, None)
    assert not spread.advantages[experience.mask].isfinite().any()
    fault = examine(experience, spread)
    assert fault is not None and list(fault.found) == ["scores"]
    fault = examine(rollout()[0], spread)
    assert fault is not None and "advantages" in fault.found


def test_a_minibatch_is_at_fault_by_its_loss_or_by_its_gradient() -> None:
    rows = torch.tensor([True, False])
    losses = {"loss/policy": torch.tensor(1.0), "loss/value": torch.tensor(1.0)}
    norms = {"policy/grad_norm": 1.0, "value/grad_norm": 2.0}
    assert examine_minibatch(losses, norms, rows) is None
    for bad in (math.nan, math.inf):
        fault = examine_minibatch({**losses, "loss/value": torch.tensor(bad)}, norms, rows)
        assert fault is not None and list(fault.found) == ["loss/value"]
        fault = examine_minibatch(losses, {**norms, "policy/grad_norm": bad}, rows)
        assert fault is not None and torch.equal(fault.found["policy/grad_norm"], rows)


def test_a_breaker_counts_all_and_in_a_row_and_remembers() -> None:
    breaker, figures = Breaker(2), []
    assert breaker.figures() == {}
    for faulty in (False, True, False, True, True):
        assert not breaker.is_open
        breaker.count(faulty)
        figures.append(tuple(breaker.figures().values()))
    assert figures == [(), (1, 1), (1, 0), (2, 1), (3, 2)] and breaker.is_open
    again = Breaker(None)
    again.load_state_dict(breaker.state_dict())
    assert again.figures() == breaker.figures() and not again.is_open  # never, without a limit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cast(tmp_path_factory.mktemp("cast"))


def spoil_gradient(model: nn.Module, backward: int, bad: float) -> RemovableHandle:
    """Put what is not finite into one position of a backward, from the so-many-eth on; losses stay what they are."""
    seen: list[None] = []

    def spoil(gradient: Tensor) -> Tensor:
        seen.append(None)
        return gradient if len(seen) < backward else gradient.index_fill(1, torch.tensor([0]), bad)

    def watch(model: nn.Module, _: Any, output: Any) -> None:
        if output.logits.requires_grad:
            output.logits.register_hook(spoil)

    return model.register_forward_hook(watch)


def spoil_values(cast: Cast) -> RemovableHandle:
    """Values whose squared errors overflow, while no gradient goes through them."""

    def huge(model: nn.Module, _: Any, output: Any) -> None:
        output.logits = output.logits * 0 + 3e19

    return cast.models["value"].register_forward_hook(huge)


def state(engine: Engine) -> dict[str, Any]:
    """All that an engine learns: weights and moments."""
    moments = [found[key] for found in engine.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]  # type: ignore[attr-defined]
    return {"weights": weights(engine.module), "moments": torch.cat([moment.flatten() for moment in moments])}


WAYS: dict[str, tuple[str, Callable[[Cast], object]]] = {
    "nan in the policy's gradient": (
        "policy/grad_norm",
        lambda cast: spoil_gradient(cast.models["policy"], 2, math.nan),
    ),
    "inf in the value's gradient": (
        "value/grad_norm",
        lambda cast: spoil_gradient(cast.models["value"], 2, math.inf),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_neither_model_learns_from_its_own_faulty_minibatch(
    way: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of four minibatches, each in one micro-batch: what is left is an update by the first alone.

    The policy learns from none in which anything is faulty; where it is the faulty one, the value model has learned.
    """
    config = CONFIG.model_copy(update={"micro_batch_tokens": 10_000})
    name, plant = WAYS[way]
    cast = load_cast(folder)
    made = step(cast, PROMPTS, range(len(PROMPTS)), config, before_update=plant)
    assert made.fault is not None and list(made.fault.found) == [name]
    assert int(made.fault.found[name].sum()) == len(PROMPTS) // 2
    by_value = 1 if name.startswith("value") else 2
    assert made.statistics["policy/skipped_steps"] == 3 and made.statistics["value/skipped_steps"] == 4 - by_value
    original, after = update.minibatches, []
    for count in (1, 2):
        monkeypatch.setattr(update, "minibatches", lambda *given, count=count: list(original(*given))[:count])
        after.append(load_cast(folder))
        assert step(after[-1], PROMPTS, range(len(PROMPTS)), config).fault is None
    for engine, wanted in ((cast.policy, after[0].policy), (cast.value, after[by_value - 1].value)):
        assert engine and wanted
        found, expected = state(engine), state(wanted)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert all(parameter.grad is None for parameter in engine.parameters)  # type: ignore[attr-defined]
        assert engine.schedule.last_epoch == wanted.schedule.last_epoch == 4  # type: ignore[attr-defined]


def test_an_infinite_loss_is_a_fault_though_its_gradient_is_finite(folder: Path) -> None:
    cast = load_cast(folder)
    before = [weights(model) for model in cast.models.values()]
    made = step(cast, PROMPTS, range(len(PROMPTS)), before_update=spoil_values)
    assert made.fault is not None and list(made.fault.found) == ["loss/value"]
    assert made.statistics["loss/value"] == math.inf and math.isfinite(made.statistics["value/grad_norm"])
    assert all(torch.equal(weights(model), old) for model, old in zip(cast.models.values(), before, strict=True))


def test_a_faulty_rollout_is_not_learned_from_and_the_schedule_goes_on(folder: Path) -> None:
    cast = load_cast(folder)
    made = step(cast, PROMPTS, range(len(PROMPTS)))
    before = [weights(model) for model in cast.models.values()]
    made.experience.ref_logprobs[0, 0] = math.nan
    found = update.update(cast.policy, cast.value, made.experience, made.targets, CONFIG, KEY)
    assert found.fault is not None and found.statistics == {"policy/skipped_steps": 4, "value/skipped_steps": 4}
    assert all(torch.equal(weights(model), old) for model, old in zip(cast.models.values(), before, strict=True))
    assert cast.policy.schedule.last_epoch == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize(("scale", "sound"), [(1.0, True), (1e16, False), (math.nan, False)])
def test_a_model_is_sound_where_its_weights_and_what_it_says_are_finite(
    scale: float, sound: bool, folder: Path
) -> None:
    """Weights of 1e16 are finite, and what comes of them is not."""
    cast = load_cast(folder)
    with torch.no_grad():
        for parameter in cast.policy.module.parameters():
            parameter.mul_(scale)
    assert is_sound(cast.policy, [5, 6, 7]) == sound


def test_one_weight_that_a_text_does_not_touch_is_seen(folder: Path) -> None:
    cast = load_cast(folder)
    with torch.no_grad():
        cast.models["value"].get_input_embeddings().weight[9] = math.inf  # type: ignore[operator]
    assert cast.value and not is_sound(cast.value, [5, 6, 7])
