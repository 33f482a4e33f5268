import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.engine.optimizer import OptimizerOptions
from rlhf.ppo.dealing import deal
from rlhf.ppo.experience import trim
from rlhf.ppo.shaping import penalize_unfinished, shape_rewards
from rlhf.ppo.update import micro_batches_in_lockstep, minibatches
from tests import reference
from tests.cast import (
    CONFIG,
    KEY,
    PROMPTS,
    Cast,
    Step,
    load_cast,
    save_cast,
    step,
    weights,
)
from tests.test_models import tiny_tokenization


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cast(tmp_path_factory.mktemp("cast"))


def run(folder: Path, options: dict[str, Any] | None = None, **changes: Any) -> tuple[Cast, Step]:
    config = CONFIG.model_copy(update=changes)
    cast = load_cast(folder, config, **options or {})
    return cast, step(cast, PROMPTS, range(len(PROMPTS)), config)


def alone(made: Step) -> list[tuple[int, list[int], list[int]]]:
    """(row, prompt ids, response ids), without padding."""
    return [(i, list(c.prompt_tokens), list(c.response_tokens)) for i, c in enumerate(made.completions)]


def test_experience_is_what_each_row_gives_alone(folder: Path) -> None:
    """Every figure from a full forward of one unpadded sequence, its log-softmax written out."""
    cast, made = run(folder, {"learning_rate": 0.0})
    experience = made.experience
    assert len(set(experience.mask.sum(-1).tolist())) > 3 and set(experience.finished.tolist()) == {True, False}
    for i, prompt, response in alone(made):
        sequence = torch.tensor([prompt + response])
        table = {kind: forward(model, sequence).double().numpy() for kind, model in cast.models.items()}
        for t, token in enumerate(response):
            before = len(prompt) + t - 1
            for kind, got in (("policy", experience.old_logprobs), ("reference", experience.ref_logprobs)):
                assert float(got[i, t]) == pytest.approx(reference.logprob(table[kind][before], token, 0.8), abs=2e-5)
            assert float(experience.values[i, t]) == pytest.approx(table["value"][before, 0], abs=1e-5)
        score = forward(cast.actors.reward.model, sequence)[0]  # type: ignore[attr-defined]
        assert float(experience.scores[i]) == pytest.approx((float(score) - 0.1) / 0.5, abs=1e-5)
        assert experience.tokens[i][experience.attention_mask[i]].tolist() == prompt + response
    for field in (experience.old_logprobs, experience.ref_logprobs, experience.values):
        assert (field[~experience.mask] == 0).all()


def forward(model: nn.Module, sequence: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=sequence).logits[0].detach()
    return logits


def test_completions_say_what_was_sampled(folder: Path) -> None:
    _, made = run(folder)
    tokenization = tiny_tokenization()
    for prompt, completion, row, done in zip(
        PROMPTS, made.completions, alone(made), made.experience.finished, strict=True
    ):
        assert completion.prompt == prompt and list(completion.prompt_tokens) == tokenization.prompt(prompt)
        assert completion.finished == bool(done) == (row[2][-1] == tokenization.stop_id)
        assert tokenization.stop_id not in row[2][:-1]
        assert completion.response == tokenization.text(row[2])


def test_an_update_does_not_depend_on_the_cut(folder: Path) -> None:
    """From one row a micro-batch to all rows of a minibatch in one.

    Where a gradient is nothing but rounding, Adam still makes steps of the learning rate's size: hence a small one.
    """
    small = {"learning_rate": 3e-5}
    whole_cast, whole = run(folder, small, micro_batch_tokens=10_000)
    assert len(cut(whole, 1)) == 4 and len(cut(whole, 50)) > 1 and len(cut(whole, 10_000)) == 1
    for budget in (1, 50):
        cast, made = run(folder, small, micro_batch_tokens=budget)
        assert made.statistics == pytest.approx(whole.statistics, rel=1e-4, abs=1e-6)
        for name in ("policy", "value"):
            got, expected = (weights(each.models[name]) for each in (cast, whole_cast))
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def cut(made: Step, budget: int) -> list[Any]:
    return micro_batches_in_lockstep(made.experience, torch.arange(4), budget)


def test_the_first_update_is_on_policy(folder: Path) -> None:
    _, made = run(folder, epochs=1, minibatches=1)
    statistics = made.statistics
    assert statistics["policy/clipfrac"] == statistics["value/clipfrac"] == 0
    assert statistics["policy/approxkl"] == pytest.approx(0, abs=1e-8)
    assert statistics["loss/policy"] == pytest.approx(0, abs=1e-5)  # less the mean of whitened advantages
    _, second = run(folder, {"learning_rate": 1e-3}, epochs=2, minibatches=1)
    assert second.statistics["policy/approxkl"] > 1e-3


def test_the_first_update_is_on_policy_in_bfloat16_too(folder: Path) -> None:
    _, made = run(folder, {"bfloat16": True}, epochs=1, minibatches=1)
    assert made.statistics["policy/approxkl"] == pytest.approx(0, abs=1e-8)
    assert made.statistics["policy/clipfrac"] == made.statistics["value/clipfrac"] == 0


def test_statistics_and_gradients_of_a_step_are_those_of_single_sequences(folder: Path) -> None:
    """The gradient by autograd through each unpadded row by itself, divided by the step's tokens."""
    _, made = run(folder, epochs=1, minibatches=1)
    fresh = load_cast(folder)
    tokens = sum(len(response) for _, _, response in alone(made))
    policy_loss = value_loss = entropies = torch.tensor(0.0, dtype=torch.float64)
    for i, prompt, response in alone(made):
        sequence = torch.tensor([prompt + response])
        logits = fresh.actors.policy(input_ids=sequence).logits[0].double() / 0.8
        values = fresh.models["value"](input_ids=sequence).logits[0, :, 0].double()
        for t, token in enumerate(response):
            before = len(prompt) + t - 1
            policy_loss = policy_loss - made.targets.advantages[i, t] * logits[before].log_softmax(-1)[token] / tokens
            value_loss = value_loss + (values[before] - made.targets.returns[i, t]).square() / 2 / tokens
            entropies = entropies + reference.entropy(logits[before].detach().numpy()) / tokens
    assert made.statistics["loss/value"] == pytest.approx(float(value_loss.detach()), rel=1e-5)
    assert made.statistics["objective/entropy"] == pytest.approx(float(entropies), rel=1e-5)
    for name, loss in (("policy", policy_loss), ("value", value_loss)):
        gradients = torch.autograd.grad(loss, list(fresh.models[name].parameters()))
        norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        assert made.statistics[f"{name}/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_an_update_raises_what_was_better_than_expected_and_fits_the_returns(folder: Path) -> None:
    cast, made = run(folder, epochs=1, minibatches=1)
    objective, errors = 0.0, []
    for i, prompt, response in alone(made):
        sequence = torch.tensor([prompt + response])
        logits = forward(cast.actors.policy, sequence).double().numpy()
        values = forward(cast.models["value"], sequence)[:, 0]
        for t, token in enumerate(response):
            gain = reference.logprob(logits[len(prompt) + t - 1], token, 0.8) - float(
                made.experience.old_logprobs[i, t]
            )
            objective += float(made.targets.advantages[i, t]) * gain
            errors.append(float(values[len(prompt) + t - 1] - made.targets.returns[i, t]) ** 2)
    assert objective > 0.1
    assert np.mean(errors) / 2 < made.statistics["loss/value"] - 1e-4


def test_without_a_learning_rate_nothing_moves(folder: Path) -> None:
    cast, _ = run(folder, {"learning_rate": 0.0})
    fresh = load_cast(folder)
    for name, model in cast.models.items():
        assert torch.equal(weights(model), weights(fresh.models[name]))


def test_only_policy_and_value_move(folder: Path) -> None:
    cast, _ = run(folder)
    fresh = load_cast(folder)
    assert torch.equal(weights(cast.actors.reference), weights(fresh.actors.reference))
    rewards = [weights(each.actors.reward.model) for each in (cast, fresh)]  # type: ignore[attr-defined]
    assert torch.equal(*rewards)
    for name in ("policy", "value"):
        assert float((weights(cast.models[name]) - weights(fresh.models[name])).abs().max()) > 1e-4


def test_a_gradient_that_is_not_finite_changes_nothing(folder: Path) -> None:
    engine = load_cast(folder).policy
    tokens = torch.tensor([[5, 6, 7]])
    for factor in (1.0, float("nan"), float("inf")):
        before = weights(engine.module)
        engine.backward(engine(input_ids=tokens).logits.square().mean() * factor)
        norm = engine.step()
        assert math.isfinite(norm) == (factor == 1.0)
        assert torch.equal(weights(engine.module), before) == (factor != 1.0)
        assert all(parameter.grad is None for parameter in engine.parameters)


def test_learning_rate_warms_up_and_falls_to_its_end() -> None:
    options = OptimizerOptions(
        learning_rate=1.0, learning_rate_end=0.1, warmup_steps=3, total_steps=13, weight_decay=0.0, max_grad_norm=1.0
    )
    shares = [options.share(i) for i in range(15)]
    np.testing.assert_allclose(shares[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(np.diff(shares[3:14]), -0.09)
    assert shares[13] == shares[14] == pytest.approx(0.1)


def test_minibatches_hold_each_row_once_an_epoch_and_the_same_on_any_number_of_ranks() -> None:
    whole = [part.tolist() for part in minibatches(CONFIG, KEY)]
    assert [sorted(whole[i] + whole[i + 1]) for i in (0, 2)] == [list(range(8))] * 2
    assert whole[:2] != whole[2:]
    assert whole != [part.tolist() for part in minibatches(CONFIG, (11, 5))]


@pytest.mark.parametrize("ranks", [1, 2, 3, 16])
def test_a_minibatch_is_dealt_out_by_tokens(ranks: int) -> None:
    chance = random.Random(ranks)
    costs = [1 + int(chance.expovariate(0.04)) for _ in range(16 * ranks)]
    hands = deal(costs, ranks)
    assert sorted(index for hand in hands for index in hand) == list(range(len(costs)))
    loads = [sum(costs[index] for index in hand) for hand in hands]
    assert max(loads) <= max(4 / 3 * sum(costs) / ranks, max(costs))
    assert deal(costs, ranks) == hands
    assert deal([], ranks) == [[]] * ranks and deal([3], ranks)[0] == [0]


@pytest.mark.parametrize(("ranks", "rows"), [(2, 32), (8, 32), (32, 16), (128, 16)])
def test_no_rank_waits_long_for_another(ranks: int, rows: int) -> None:
    """One of two minibatches of prompts of 128 to 256 tokens, responses of 200 on average and 1,024 at most."""
    kept, dealt = 0.0, 0.0
    for seed in range(20):
        chance = random.Random(seed)
        lengths = [(chance.randint(128, 256), int(chance.expovariate(1 / 200))) for _ in range(ranks * rows)]
        part = chance.sample(range(len(lengths)), len(lengths) // 2)
        costs = [lengths[row][0] + min(1024, 1 + lengths[row][1]) for row in part]
        fair = 20 * sum(costs) / ranks
        own = [sum(cost for cost, row in zip(costs, part, strict=True) if row % ranks == rank) for rank in range(ranks)]
        kept += max(own) / fair
        dealt += max(sum(costs[i] for i in hand) for hand in deal(costs, ranks)) / fair
    print(
        f"{ranks} ranks of {rows} rows: the fullest has {kept:.2f} of its share where rows stay, {dealt:.2f} dealt out"
    )
    assert dealt < 1.05 < kept


@pytest.mark.parametrize("poison", reference.POISONS)
def test_the_score_stands_at_the_last_token_and_divergence_costs(poison: float) -> None:
    rng = np.random.default_rng(0)
    rows, scores = [rng.normal(0, 1, length) for length in (3, 1, 5)], rng.normal(0, 1, 3)
    kl, mask = (torch.from_numpy(part) for part in reference.padded(rows, poison, width=6))
    got = shape_rewards(torch.from_numpy(scores), kl, mask, 0.3)
    for row, divergence, score in zip(got, rows, scores, strict=True):
        np.testing.assert_allclose(row[: len(divergence)], reference.shape_rewards(score, divergence, 0.3), rtol=1e-12)
    assert (got[~mask] == 0).all()
    plain = shape_rewards(torch.tensor([1.0, 2.0, 3.0]).double(), kl, mask, 0.0)
    assert plain.tolist() == [[0, 0, 1, 0, 0, 0], [2, 0, 0, 0, 0, 0], [0, 0, 0, 0, 3, 0]]


def test_only_unfinished_responses_pay() -> None:
    scores, finished = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([True, False, False])
    assert penalize_unfinished(scores, finished, 0.25).tolist() == [1.0, -2.25, 0.25]


def test_trimming_takes_off_common_padding_alone() -> None:
    """Prompts of 2 and 1 tokens in 3 columns, responses of 1 and 2 in 4."""
    tokens = torch.tensor([[0, 11, 12, 13, 0, 0, 0], [0, 0, 21, 22, 23, 0, 0]])
    attention_mask, mask = tokens != 0, torch.tensor([[True, False, False, False], [True, True, False, False]])
    both = trim(torch.tensor([1, 0]), tokens, attention_mask, mask)
    assert both.tokens.tolist() == [[0, 21, 22, 23], [11, 12, 13, 0]]
    assert both.attention_mask.tolist() == [[False, True, True, True], [True, True, True, False]]
    assert both.response_length == 2
    single = trim(torch.tensor([0]), tokens, attention_mask, mask)
    assert single.tokens.tolist() == [[11, 12, 13]] and single.response_length == 1
