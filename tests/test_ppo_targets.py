"""From a rollout to what the update fits, against the definitions, and what must not matter to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.config import PpoConfig
from rlhf.logprobs import TokenLogprobs
from rlhf.ppo.objective import Objective
from rlhf.ppo.shaping import RunningScores, penalize_overlong
from rlhf.ppo.targets import Targets, find_targets
from rlhf.types import Experience
from tests import reference
from tests.defined import targets_of
from tests.experiences import ESTIMATORS, LONGEST, Rows, experience_of, permuted, random_rows, settings_of

SMALL = settings(deadline=None, max_examples=25)
COEF = 0.3
BATCH = {
    "lengths": st.lists(st.integers(1, LONGEST), min_size=6, max_size=6),
    "seed": st.integers(0, 2**32 - 1),
}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


def found(experience: Experience, config: PpoConfig) -> Targets:
    return find_targets(experience, config, COEF, RunningScores() if config.normalize_scores == "running" else None)


def assert_defined(targets: Targets, rows: Rows, config: PpoConfig, mask: Tensor) -> None:
    assert (targets.weights is None) == (config.importance_cap is None)
    assert targets.kl_coef == (COEF if config.kl.place == "loss" else 0.0)
    for field, expected in targets_of(rows, config, COEF).items():
        got = getattr(targets, field)
        if got is None:
            continue
        for row, wanted in zip(got, expected, strict=True):
            np.testing.assert_allclose(row[: len(wanted)], wanted, rtol=1e-8, atol=1e-8, err_msg=field)
        assert field == "weights" or (got[~mask] == 0).all()


@every_estimator
@pytest.mark.parametrize("poison", reference.POISONS)
@given(**BATCH)
@SMALL
def test_targets_are_the_definition(name: str, poison: float, lengths: list[int], seed: int) -> None:
    """Scores, penalties, rewards, advantages, returns and weights in one."""
    config, rows = settings_of(name), random_rows(lengths, seed)
    experience = experience_of(rows, poison, LONGEST)
    assert_defined(found(experience, config), rows, config, experience.mask)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("place", ["reward", "loss"])
def test_kl_stands_in_the_reward_or_in_the_loss(estimator: str, place: str) -> None:
    if (estimator, place) == ("k1", "loss"):
        return  # refused
    config = settings_of("gae", kl={"estimator": estimator, "place": place})
    rows = random_rows([3, 1, 8, 5, 2, 4], 0)
    experience = experience_of(rows)
    assert_defined(found(experience, config), rows, config, experience.mask)


@every_estimator
@given(**BATCH, poison=st.floats(-1e6, 1e6), extra=st.integers(0, 3))
@SMALL
def test_what_is_padded_and_how_wide_does_not_matter(
    name: str, lengths: list[int], seed: int, poison: float, extra: int
) -> None:
    config, rows = settings_of(name), random_rows(lengths, seed)
    one, other = experience_of(rows), experience_of(rows, poison, max(lengths) + extra)
    for field in ("rewards", "advantages", "returns"):
        got, expected = (getattr(found(each, config), field)[each.mask] for each in (other, one))
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@every_estimator
@given(**BATCH, order=st.randoms(use_true_random=False))
@SMALL
def test_the_order_of_rows_does_not_matter(name: str, lengths: list[int], seed: int, order: Any) -> None:
    """Prompts among each other, and the responses to a prompt."""
    config, experience = settings_of(name), experience_of(random_rows(lengths, seed))
    group = config.responses_per_prompt
    prompts = [list(range(i, i + group)) for i in range(0, len(lengths), group)]
    order.shuffle(prompts)
    for rows in prompts:
        order.shuffle(rows)
    moved = [row for rows in prompts for row in rows]
    got, expected = found(permuted(experience, moved), config), found(experience, config)
    for field in ("rewards", "advantages", "returns"):
        torch.testing.assert_close(getattr(got, field), getattr(expected, field)[moved], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gae", {"gamma": 1.0, "lam": 1.0, "value_lam": None, "score_clip": None}),
        ("rloo", {}),
        ("reinforce++", {"gamma": 1.0, "normalize_scores": "none"}),
        ("grpo", {}),
    ],
)
@given(**BATCH, constant=st.floats(-10, 10))
@SMALL
def test_a_constant_added_to_all_scores_teaches_nothing(
    name: str, changes: dict[str, Any], lengths: list[int], seed: int, constant: float
) -> None:
    config, rows = settings_of(name, **changes), random_rows(lengths, seed)
    moved = Rows(**{**rows.__dict__, "scores": rows.scores + constant})
    got, expected = (found(experience_of(each), config).advantages for each in (moved, rows))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=1, max_size=4).filter(
        lambda steps: np.std(steps[0]) > 1e-3
    )
)
@SMALL
def test_running_scores_are_those_of_all_so_far(steps: list[list[float]]) -> None:
    running = RunningScores()
    for scores, expected in zip(steps, reference.running_scores([np.array(each) for each in steps]), strict=True):
        state = running.state_dict()
        np.testing.assert_allclose(
            running.normalize(torch.tensor(scores, dtype=torch.float64)), expected, rtol=1e-7, atol=1e-9
        )
        resumed = RunningScores()
        resumed.load_state_dict(state)
        resumed.normalize(torch.tensor(scores, dtype=torch.float64))
        assert resumed.state_dict() == running.state_dict()


def test_of_equal_scores_only_the_mean_is_taken_off() -> None:
    running = RunningScores()
    assert running.normalize(torch.tensor([3.0])).tolist() == [0.0]
    assert running.normalize(torch.tensor([3.0, 3.0])).tolist() == [0.0, 0.0]


@given(st.integers(2, 30), st.integers(1, 29), st.floats(0.1, 3), st.data())
@SMALL
def test_overlong_is_the_definition(longest: int, tokens: int, penalty: float, data: st.DataObject) -> None:
    tokens = min(tokens, longest - 1)
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=4))
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    got = penalize_overlong(torch.ones(len(lengths)).double(), mask, longest, tokens, penalty)
    expected = [1 - reference.overlong(length, longest, tokens, penalty) for length in lengths]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def objective_of(config: PpoConfig, experience: Experience, targets: Targets, moved: Tensor, rows: list[int]) -> Any:
    """Loss and shares of some rows, trimmed, in a minibatch of all rows."""
    length = int(experience.mask[rows].sum(-1).max())

    def of(field: Tensor) -> Tensor:
        return field[rows, :length]

    new = TokenLogprobs(of(moved), of(moved).square())
    objective = Objective(config, targets, float(experience.mask.sum()))
    return objective.policy(new, experience, of(experience.mask), of)


EVERYTHING = {"entropy_bonus": 0.1, "kl": {"estimator": "k2", "place": "loss"}, "clip_high": 0.3, "ratio": "sequence"}


@every_estimator
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
@given(**BATCH, cut=st.integers(1, 6))
@SMALL
def test_micro_batches_add_up(name: str, changes: dict[str, Any], lengths: list[int], seed: int, cut: int) -> None:
    config, experience = settings_of(name, **changes), experience_of(random_rows(lengths, seed), 0.0)
    targets = found(experience, config)
    moved = experience.old_logprobs + experience.values / 3
    rows = list(range(len(lengths)))
    whole, shares = objective_of(config, experience, targets, moved, rows)
    parts = [objective_of(config, experience, targets, moved, part) for part in (rows[:cut], rows[cut:]) if part]
    torch.testing.assert_close(sum(part[0] for part in parts), whole)
    for figure, share in shares.items():
        torch.testing.assert_close(sum(part[1][figure] for part in parts), share)


@every_estimator
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@given(**BATCH)
@SMALL
def test_the_first_update_has_ratio_one(name: str, ratio: str, lengths: list[int], seed: int) -> None:
    """Nothing is clipped, nothing has diverged, and the loss is the mean of weighted advantages."""
    config, experience = settings_of(name, ratio=ratio), experience_of(random_rows(lengths, seed))
    targets = found(experience, config)
    rows = list(range(len(lengths)))
    loss, shares = objective_of(config, experience, targets, experience.old_logprobs, rows)
    assert float(shares["policy/clipfrac"]) == float(shares["policy/approxkl"]) == 0
    weights = torch.ones_like(targets.advantages) if targets.weights is None else targets.weights
    expected = -(targets.advantages * weights)[experience.mask].mean()
    torch.testing.assert_close(loss, expected)
