"""A whole step in each of its forms: figures, losses and gradients are those of single, unpadded sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.adapters import AdapterOff
from rlhf.config import PpoConfig
from rlhf.ppo.experience import own_rows
from rlhf.types import Experience
from tests import reference
from tests.cast import CONFIG, KL_COEF, PROMPTS, Cast, Step, load_cast, save_cast, step
from tests.defined import Row, chosen, distributions, losses_of, targets_of, values_of
from tests.experiences import Rows
from tests.test_models import tiny_tokenization

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
GROUPS = {"responses_per_prompt": 2}
IN_LOSS = {"estimator": "k3", "place": "loss"}
TOP_P = {"max_new_tokens": 10, "temperature": 0.8, "top_p": 0.8}
VARIANTS: dict[str, dict[str, Any]] = {
    "gae": {},
    "gae of two lambdas": {"value_lam": 0.5, "value_clip": None, "whiten_rewards": True},
    "gae on the trunk": {"value_start": "trunk", "value_coef": 0.4},
    "rloo": {"advantage": "rloo", **GROUPS},
    "reinforce++": {"advantage": "reinforce++", "normalize_scores": "running", "score_clip": 1.0},
    "grpo": {"advantage": "grpo", **GROUPS, "overlong": {"tokens": 6, "penalty": 0.5}},
    "asymmetric clip": {"clip": 0.05, "clip_high": 0.15},
    "sequence ratio": {"ratio": "sequence", "clip": 0.03, "clip_high": 0.05},
    "weights": {"generation": TOP_P, "importance_cap": 0.95},
    "k2 in the loss": {"kl": {"estimator": "k2", "place": "loss"}},
    "k3 in the loss": {"kl": IN_LOSS},
    "entropy bonus": {"entropy_bonus": 0.2},
    "all at once": {
        **GROUPS,
        "value_start": "trunk",
        "ratio": "sequence",
        "clip": 0.05,
        "generation": TOP_P,
        "importance_cap": 0.95,
        "kl": IN_LOSS,
        "entropy_bonus": 0.2,
    },
}
every_variant = pytest.mark.parametrize("name", VARIANTS)
every_kind = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cast(tmp_path_factory.mktemp("cast"))


def settings_of(name: str, **changes: Any) -> PpoConfig:
    whole = CONFIG.model_dump() | {"epochs": 1, "minibatches": 1} | VARIANTS[name]
    return PpoConfig.model_validate(whole | changes)


def nudge(cast: Cast) -> None:
    """As if a few updates had been made since the rollout: ratios are not one, and values have moved."""
    generator = torch.Generator().manual_seed(2)
    engines = [cast.policy] if cast.value in (None, cast.policy) else [cast.policy, cast.value]
    far = 0.04 if isinstance(cast.actors.reference, AdapterOff) else 0.01
    with torch.no_grad():
        for engine in engines:
            for parameter in engine.parameters:
                parameter += far * torch.randn(parameter.shape, generator=generator)


def play(folder: Path, config: PpoConfig, lora: bool = False, nudged: bool = True, rate: float = 0.0) -> Any:
    """A cast and a step of it. Without a rate the models still are those whose losses the step has measured."""
    cast = load_cast(folder, config, lora, learning_rate=rate)
    rows = own_rows(config)
    prompts = [PROMPTS[row // config.responses_per_prompt] for row in rows]
    return cast, step(cast, prompts, rows, config, before_update=nudge if nudged else lambda cast: None)


def sequences_of(made: Step) -> list[Row]:
    return [Row(list(each.prompt_tokens), list(each.response_tokens)) for each in made.completions]


def rows_of(experience: Experience) -> Rows:
    def of(field: Tensor) -> list[np.ndarray]:
        return [row[mask].double().numpy() for row, mask in zip(field, experience.mask, strict=True)]

    return Rows(
        of(experience.old_logprobs),
        of(experience.sampler_logprobs),
        of(experience.ref_logprobs),
        of(experience.values),
        experience.scores.double().numpy(),
        experience.finished.tolist(),
    )


@every_kind
@pytest.mark.parametrize("name", ["gae on the trunk", "rloo", "weights"])
def test_experience_is_what_each_row_gives_alone(name: str, lora: bool, folder: Path) -> None:
    config = settings_of(name)
    cast, made = play(folder, config, lora, nudged=False)
    rows = rows_of(made.experience)
    apart = 0.0
    for i, sequence in enumerate(sequences_of(made)):
        with torch.no_grad():
            policy, ref = (distributions(cast.models[kind], sequence, 0.8) for kind in ("policy", "reference"))
            values = values_of(cast.models["value"], sequence) if config.has_value else torch.zeros(len(policy))
        assert rows.old_logprobs[i] == pytest.approx(chosen(policy, sequence).numpy(), abs=2e-5)
        assert rows.ref_logprobs[i] == pytest.approx(chosen(ref, sequence).numpy(), abs=2e-5)
        assert rows.values[i] == pytest.approx(values.numpy(), abs=2e-5)
        kept = [reference.kept_by_top_p(row.exp().tolist(), config.generation.top_p) for row in policy]
        assert all(token in tokens for token, (tokens, _) in zip(sequence.response, kept, strict=True))
        held = np.log([mass for _, mass in kept])
        assert rows.sampler_logprobs[i] == pytest.approx(rows.old_logprobs[i] - held, abs=2e-5)
        apart += float(np.abs(rows.old_logprobs[i] - rows.ref_logprobs[i]).sum())
    assert apart > 1  # or the reference could be the policy


@every_kind
def test_the_stop_token_counts(lora: bool, folder: Path) -> None:
    """It is the last that counts of a finished response: sampled, penalised, scored there, and learned."""
    _, made = play(folder, settings_of("rloo"), lora, nudged=False)
    experience, stop = made.experience, tiny_tokenization().stop_id
    responses = experience.tokens[:, -experience.response_length :]
    ends = (responses == stop) & experience.mask
    assert ends.any(-1).tolist() == experience.finished.tolist() and int(ends.sum()) > len(ends) / 2
    last = torch.arange(experience.response_length) == experience.mask.sum(-1, keepdim=True) - 1
    assert (ends <= last).all()
    assert (
        float(experience.old_logprobs[ends].mean()) < -0.1 and float(made.targets.advantages[ends].abs().mean()) > 0.1
    )


def gradient_norm(loss: Tensor, model: nn.Module) -> float:
    gradients = torch.autograd.grad(loss, [each for each in model.parameters() if each.requires_grad])
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@pytest.mark.parametrize(
    ("name", "lora"), [*((name, False) for name in VARIANTS), ("gae", True), ("rloo", True), ("all at once", True)]
)
def test_losses_and_gradients_of_a_step_are_those_of_single_sequences(name: str, lora: bool, folder: Path) -> None:
    config = settings_of(name)
    cast, made = play(folder, config, lora)
    rows, sequences, statistics = rows_of(made.experience), sequences_of(made), made.statistics
    targets = targets_of(rows, config, KL_COEF)
    models = {"policy": cast.policy.module if config.value_start == "trunk" else cast.models["policy"]}
    if cast.value:
        models["value"] = cast.value.module
    parts = losses_of(models, sequences, rows, targets, config, KL_COEF)

    new = [chosen(distributions(models["policy"], each, 0.8), each).detach().numpy() for each in sequences]
    weights = targets["weights"] if config.importance_cap else None
    surrogate = reference.policy_loss(
        new, rows.old_logprobs, targets["advantages"], config.clip, config.clip_high, config.ratio, weights
    )
    names = ("loss/policy", "policy/clipfrac", "policy/approxkl")
    assert [statistics[each] for each in names] == pytest.approx(surrogate, rel=1e-4, abs=2e-6)
    assert surrogate[0] == pytest.approx(-float(parts["surrogate"].detach()), abs=1e-6)
    assert 0.02 < surrogate[1] < 0.95 and surrogate[2] > 1e-3  # or little would be shown
    assert statistics["objective/entropy"] == pytest.approx(float(parts["entropy"].detach()), rel=1e-5)
    assert statistics.get("loss/kl", 0.0) == pytest.approx(float(parts["kl"].detach()), rel=1e-4)
    assert statistics["policy/grad_norm"] == pytest.approx(gradient_norm(parts["policy"], cast.policy.module), rel=2e-4)
    if cast.value:
        assert statistics["loss/value"] == pytest.approx(float(parts["value"].detach()), rel=1e-5)
    if cast.value and cast.value is not cast.policy:
        own = gradient_norm(parts["value"], cast.value.module)
        assert statistics["value/grad_norm"] == pytest.approx(own, rel=2e-4)


@every_variant
def test_the_first_update_clips_nothing(name: str, folder: Path) -> None:
    _, made = play(folder, settings_of(name), nudged=False)
    assert made.statistics["policy/clipfrac"] == made.statistics.get("value/clipfrac", 0.0) == 0
    assert made.statistics["policy/approxkl"] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("name", ["rloo", "reinforce++", "grpo", "all at once"])
def test_an_update_does_not_depend_on_the_cut(name: str, folder: Path) -> None:
    whole, *cuts = (play(folder, settings_of(name, micro_batch_tokens=n))[1] for n in (10_000, 1, 50))
    for made in cuts:
        assert made.statistics == pytest.approx(whole.statistics, rel=1e-4, abs=1e-6)
