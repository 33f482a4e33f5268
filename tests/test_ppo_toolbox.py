"""Parts of PPO's toolbox, each by what it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reward_models.rules import FunctionReward
from rlhf.adapters import AdapterOff, add_lora
from rlhf.config import HeldOutConfig, LoraConfig, PpoConfig
from rlhf.kl import estimate
from rlhf.losses import kl_loss
from rlhf.ppo import experience as experience_module
from rlhf.ppo.experience import collect, own_rows
from rlhf.ppo.rewards import WeightedRewards
from rlhf.ppo.targets import find_targets
from rlhf.ppo.update import update
from rlhf.types import Completion
from stages.held_out import Evaluation, HeldOut
from stages.rollout import rollout_statistics
from tests.cast import CONFIG, KEY, KL_COEF, PROMPTS, Cast, load_cast, save_cast, weights
from tests.test_models import tiny_policy

ROWS = range(len(PROMPTS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cast(tmp_path_factory.mktemp("cast"))


def updated(cast: Cast, config: PpoConfig = CONFIG, learn_policy: bool = True) -> dict[str, float]:
    experience, _ = collect(PROMPTS, ROWS, cast.actors, config, KEY)
    targets = find_targets(experience, config, KL_COEF, None)
    return update(cast.policy, cast.value, experience, targets, config, KEY, learn_policy).statistics


@pytest.mark.parametrize("world", [1, 2, 3])
def test_responses_to_a_prompt_stay_together(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    config = PpoConfig(prompts_per_step=5, responses_per_prompt=4, minibatches=2)
    ranks = []
    for rank in range(world):
        monkeypatch.setattr(experience_module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(experience_module, "world_size", lambda: world)
        ranks.append(own_rows(config))
    assert sorted(sum(ranks, [])) == list(range(20))
    for rows in ranks:
        assert all(rows[i + 1] == rows[i] + 1 and rows[i] % 4 == j for i in range(0, len(rows), 4) for j in [0])
        assert [row // 4 for row in rows[::4]] == sorted({row // 4 for row in rows})


def test_rewards_are_weighed_and_each_is_known(folder: Path) -> None:
    def length(prompts: list[str], responses: list[str]) -> list[float]:
        return [float(len(response)) for response in responses]

    cast = load_cast(folder)
    model = cast.actors.reward
    both = WeightedRewards(
        {"reward": model, "1-length": FunctionReward("length", length)}, {"reward": 2.0, "1-length": -0.5}
    )
    experience, completions = collect(PROMPTS, ROWS, replace(cast.actors, reward=both), CONFIG, KEY)
    alone = collect(PROMPTS, ROWS, cast.actors, CONFIG, KEY)[0].scores
    lengths = torch.tensor([float(len(completion.response)) for completion in completions])
    torch.testing.assert_close(experience.scores, 2 * alone - 0.5 * lengths)
    torch.testing.assert_close(experience.terms["reward"], alone)
    assert experience.terms["1-length"].tolist() == lengths.tolist()
    figures = rollout_statistics(experience, find_targets(experience, CONFIG, KL_COEF, None))
    assert figures["objective/scores_1-length"] == pytest.approx(float(lengths.mean()))
    assert figures["objective/scores_reward"] == pytest.approx(float(alone.mean()))


def test_figures_of_a_rollout_are_means_over_responses_and_tokens(folder: Path) -> None:
    cast = load_cast(folder)
    config = CONFIG.model_copy(update={"kl": CONFIG.kl.model_copy(update={"estimator": "k3"})})
    experience, _ = collect(PROMPTS, ROWS, cast.actors, config, KEY)
    targets = find_targets(experience, config, KL_COEF, None)
    figures = rollout_statistics(experience, targets)
    rows = [mask.nonzero().flatten() for mask in experience.mask]
    kl = [float((experience.old_logprobs - experience.ref_logprobs)[i][row].sum()) for i, row in enumerate(rows)]
    assert figures["objective/kl"] == pytest.approx(np.mean(kl), rel=1e-6)  # k1, whichever estimator penalises
    assert figures["tokens/response_length"] == np.mean([len(row) for row in rows])
    assert figures["objective/scores"] == pytest.approx(float(experience.scores.mean()))
    assert figures["tokens/finished"] == float(experience.finished.float().mean())
    values = np.concatenate([experience.values[i][row].double() for i, row in enumerate(rows)])
    returns = np.concatenate([targets.returns[i][row].double() for i, row in enumerate(rows)])
    explained = 1 - np.var(returns - values) / np.var(returns)
    assert figures["val/explained_variance"] == pytest.approx(explained, rel=1e-4)
    assert figures["policy/mismatch_kl"] == 0.0  # in float32 the sampler computes as the trainer does


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it by its old name
def test_without_its_adapters_a_policy_is_what_it_was() -> None:
    torch.manual_seed(0)
    tokens = torch.tensor([[5, 6, 7, 8]])
    before = tiny_policy()(input_ids=tokens).logits.detach()
    policy = add_lora(tiny_policy(), LoraConfig(rank=4, alpha=8), "policy")
    learning = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in learning:
            parameter.add_(torch.randn_like(parameter))
    reference = AdapterOff(policy)
    torch.testing.assert_close(reference(input_ids=tokens).logits.detach(), before, atol=1e-6, rtol=0)
    assert float((policy(input_ids=tokens).logits.detach() - before).abs().max()) > 0.1
    assert [parameter for parameter in policy.parameters() if parameter.requires_grad] == learning


def test_a_step_ends_where_the_policy_has_gone_too_far(folder: Path) -> None:
    """The first minibatch finds no distance, so its update is made; the second finds some, and is dropped."""
    near = CONFIG.model_copy(update={"target_kl": 1e-9})
    cast, other = load_cast(folder, learning_rate_end=0.0), load_cast(folder, learning_rate_end=0.0)
    statistics = updated(cast, near)
    assert statistics["policy/updates"] == 1
    assert all(parameter.grad is None for parameter in cast.policy.parameters)
    far = updated(other, CONFIG.model_copy(update={"target_kl": 1e9}))
    assert far["policy/updates"] == 4 and "policy/updates" not in updated(load_cast(folder))
    assert cast.policy.schedule.get_last_lr() == other.policy.schedule.get_last_lr()  # as planned
    assert not torch.equal(weights(cast.actors.policy), weights(other.actors.policy))
    assert not torch.equal(weights(cast.actors.policy), weights(load_cast(folder).actors.policy))


def test_while_the_value_model_warms_up_it_learns_alone(folder: Path) -> None:
    cast, fresh = load_cast(folder), load_cast(folder)
    statistics = updated(cast, learn_policy=False)
    assert torch.equal(weights(cast.policy.module), weights(fresh.policy.module))
    assert not torch.equal(weights(cast.value.module), weights(fresh.value.module))
    assert statistics["policy/grad_norm"] == 0 and statistics["policy/approxkl"] == pytest.approx(0, abs=1e-9)
    assert statistics["objective/entropy"] > 0
    assert cast.policy.schedule.last_epoch == cast.value.schedule.last_epoch == 4


def test_gradients_of_the_kl_as_a_loss() -> None:
    """Exactly, over all tokens: k2 has the gradient of KL(p || ref), k3 that of KL(ref || p), k1 none."""
    torch.manual_seed(0)
    logits, reference = torch.randn(7, dtype=torch.float64, requires_grad=True), torch.randn(7).double().log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    chance = logprobs.detach().exp()

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    def expected(kind: str) -> torch.Tensor:
        each = [
            kl_loss(logprobs[None, i, None], reference[None, i, None], torch.ones(1, 1, dtype=torch.bool), kind, 1)  # type: ignore[arg-type]
            for i in range(7)
        ]
        return gradient((chance * torch.stack(each)).sum())

    forward = (logprobs.exp() * (logprobs - reference)).sum()
    backward = (reference.exp() * (reference - logprobs)).sum()
    torch.testing.assert_close(expected("k2"), gradient(forward))
    torch.testing.assert_close(expected("k3"), gradient(backward))
    assert float((gradient(forward) - gradient(backward)).abs().max()) > 0.01
    nothing = gradient((chance * estimate(logprobs, reference, "k1")).sum())
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="k1"):
        expected("k1")


def test_a_kl_in_the_loss_does_not_see_later_states() -> None:
    """Exactly, over responses of two tokens: k1 in the reward has the KL's gradient, k2 as a loss at the end alone."""
    torch.manual_seed(1)
    tables = [torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(3, 3).double().requires_grad_()]
    anchors = [torch.randn(3).double().log_softmax(-1), torch.randn(3, 3).double().log_softmax(-1)]
    first, second = (table.log_softmax(-1) for table in tables)
    k1 = torch.stack([(first - anchors[0])[:, None].expand(3, 3), second - anchors[1]])
    chance = (first[:, None] + second).exp()
    whole = torch.autograd.grad((chance * k1.sum(0)).sum(), tables, retain_graph=True)
    k2 = torch.autograd.grad((chance.detach() * k1.square().sum(0) / 2).sum(), tables, retain_graph=True)
    to_go = k1.flip(0).cumsum(0).flip(0).detach()  # as rewards to go
    by_score = (chance.detach() * (to_go[0] * first[:, None] + to_go[1] * second)).sum()
    for got, wanted in zip(torch.autograd.grad(by_score, tables), whole, strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(k2[1], whole[1])
    assert float((k2[0] - whole[0]).abs().max()) > 0.01


def test_while_the_value_model_warms_up_no_patience_is_lost() -> None:
    held_out = object.__new__(HeldOut)
    held_out.config = CONFIG.model_copy(
        update={"value_warmup_steps": 50, "held_out": HeldOutConfig(patience=2), "steps": 150}
    )
    held_out.evaluations = [Evaluation(step, 0.0, 0.0, 0.0) for step in (0, 25, 50, 75)]
    assert not held_out.exhausted
    held_out.evaluations.append(Evaluation(100, 0.0, 0.0, 0.0))
    assert held_out.exhausted
    held_out.config = CONFIG.model_copy(update={"held_out": HeldOutConfig(patience=2), "advantage": "rloo"})
    held_out.evaluations = held_out.evaluations[:3]
    assert held_out.exhausted


def test_a_single_reward_has_no_terms(folder: Path) -> None:
    cast = load_cast(folder)
    experience, completions = collect(PROMPTS, ROWS, cast.actors, CONFIG, KEY)
    assert experience.terms == {} and isinstance(completions[0], Completion)
