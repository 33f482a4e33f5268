"""A tiny cast of PPO, saved and loaded, and one step as the stage makes it: for the tests of updates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_models.scoring import RewardModel
from rlhf.adapters import AdapterOff
from rlhf.config import GenerationConfig, LoraConfig, ModelConfig, ParallelismConfig, PpoConfig
from rlhf.engine import Engine
from rlhf.engine.choice import build, sharding_of
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.generation.native import NativeGenerator
from rlhf.models import add_lora, load_policy, load_reward_model, load_value_model, save_model
from rlhf.offload import offloaded_models
from rlhf.ppo.experience import Actors, collect
from rlhf.ppo.safety import Fault
from rlhf.ppo.shaping import RunningScores
from rlhf.ppo.targets import Targets, find_targets
from rlhf.ppo.update import update
from rlhf.sharding import whole
from rlhf.token_head import TokenHead
from rlhf.trunk import PolicyWithValueHead
from rlhf.types import Completion, Experience, Prompt
from tests.test_models import tiny_policy, tiny_tokenization

PROMPTS = [
    Prompt(text)
    for text in ("The cat", "a", "and the dog sat on the", "A dog ran after", "it", "The mat, and a", "on", "ran")
]
CONFIG = PpoConfig(
    prompts_per_step=len(PROMPTS),
    epochs=2,
    minibatches=2,
    micro_batch_tokens=50,
    gamma=0.97,
    lam=0.9,
    missing_eos_penalty=0.5,
    generation=GenerationConfig(max_new_tokens=10, temperature=0.8),
)
SCORE_MEAN, SCORE_DEVIATION, KL_COEF, KEY = 0.1, 0.5, 0.3, (11, 4)


@dataclass(frozen=True)
class Cast:
    """The models of a run."""

    actors: Actors
    policy: Engine
    value: Engine | None  # the policy's own with a value head; None where no values are needed

    @property
    def models(self) -> dict[str, nn.Module]:
        """Those that a step works with, by name; with a value head, the value model is the policy with it."""
        value = {} if self.actors.value is None else {"value": self.actors.value}
        return {"policy": self.actors.policy, "reference": self.actors.reference, **value}


@dataclass(frozen=True)
class Step:
    """What one step of PPO made."""

    experience: Experience
    completions: list[Completion]
    targets: Targets
    statistics: dict[str, float]
    fault: Fault | None


def save_cast(folder: Path) -> Path:
    """Write policy/, reference/ (other weights, so that there is a divergence) and reward/."""
    save_model(tiny_policy(), tiny_tokenization(), folder / "policy")
    save_model(tiny_policy(seed=5), tiny_tokenization(), folder / "reference")
    torch.manual_seed(0)
    reward = load_reward_model(folder / "policy", tiny_tokenization(), ModelConfig())
    save_model(reward, tiny_tokenization(), folder / "reward")
    return folder


class EndingHead(TokenHead):
    """Makes stop tokens frequent, and certain behind a prompt's `!`, so that responses are ragged.

    By one more hidden unit, which the stop token's logit alone reads: the head's own code computes the rest.
    """

    marked: Tensor  # [..., tokens] which of those that logits are wanted of are `!`

    def forward(self, hidden: Tensor) -> Tensor:
        unit = torch.where(self.marked, 25.0, 4.0).to(hidden.dtype).unsqueeze(-1)
        stop = torch.zeros(len(self.weight), 1, dtype=self.weight.dtype)
        stop[tiny_tokenization().stop_id] = 1.0
        return self.answer(torch.cat([hidden, unit], -1), torch.cat([self.weight, stop], -1), self.bias)


def end_sooner(model: Any) -> None:
    """See `EndingHead`."""
    head = model.get_output_embeddings()
    assert isinstance(head, TokenHead)
    head.__class__ = EndingHead
    (mark,) = tiny_tokenization().tokenizer("!", add_special_tokens=False)["input_ids"]

    def look(_: nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        tokens, kept = inputs["input_ids"], inputs.get("logits_to_keep", 0)
        vars(head)["marked"] = (tokens[:, kept] if isinstance(kept, Tensor) else tokens[:, -kept:]) == mark

    model.register_forward_pre_hook(look, with_kwargs=True)


def adapted(model: nn.Module, kind: str, seed: int) -> nn.Module:
    """With adapters that add something, as they do once they have learned."""
    model = add_lora(model, LoraConfig(rank=4, alpha=8.0), kind)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1, generator=generator)
    return model


def with_head(policy: nn.Module) -> PolicyWithValueHead:
    """A policy whose values are not zero."""
    trunk = PolicyWithValueHead(policy)
    with torch.no_grad():
        trunk.head.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(8))
        trunk.head.bias.fill_(0.1)
    return trunk


def load_cast(
    folder: Path,
    config: PpoConfig = CONFIG,
    lora: bool = False,
    parallelism: ParallelismConfig | None = None,
    **options: Any,
) -> Cast:
    """As stages/cast.py makes it, from what `save_cast` wrote."""
    tokenization, model = tiny_tokenization(), ModelConfig()
    policy, frozen = (load_policy(folder / name, tokenization, model) for name in ("policy", "reference"))
    for each in (policy, frozen):
        end_sooner(each)
    reward = load_reward_model(folder / "reward", tokenization, model).eval()
    critic: nn.Module | None = None
    if config.has_critic:
        critic = load_value_model(folder / "reward", tokenization, model, SCORE_MEAN, SCORE_DEVIATION)
    if lora:
        policy = adapted(policy, "policy", 3)
        frozen = AdapterOff(policy)
        critic = adapted(critic, "value", 4) if critic is not None else None
    else:
        frozen = frozen.eval()
    trunk = with_head(policy) if config.has_value and critic is None else None
    settings: dict[str, Any] = {
        "learning_rate": 1e-4,
        "learning_rate_end": 1.0,
        "warmup_steps": 0,
        "total_steps": 100,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    options = {"offload": "optimizer" in config.offload} | options
    parallelism = parallelism or ParallelismConfig()
    sharding = sharding_of(parallelism)
    engine = build(trunk or policy, OptimizerOptions(**settings | options), parallelism, sharding)
    value = engine if trunk else None
    if critic is not None:
        value = build(critic, OptimizerOptions(**settings | options), parallelism, sharding)
    if sharding is not None:
        reward = sharding.shard_frozen(reward.requires_grad_(False), scores=True)
        frozen = frozen if lora else sharding.shard_frozen(frozen.requires_grad_(False))
    bfloat16 = options.get("bfloat16", False)
    generator = NativeGenerator(policy, tokenization.stop_id, tokenization.pad_id, config.generation, bfloat16)
    scorer = RewardModel(reward, tokenization, config.micro_batch_tokens, SCORE_MEAN, SCORE_DEVIATION)
    values = value.module if value else None
    of = {"reference": [frozen], "reward": [reward]}
    away = {role: offloaded_models(of[role]) for role in of if role in config.offload}
    actors = Actors(policy, frozen, values, generator, scorer, tokenization, bfloat16, sharding is not None, away)
    return Cast(actors, engine, value)


def step(
    cast: Cast,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    config: PpoConfig = CONFIG,
    running: RunningScores | None = None,
    before_update: Callable[[Cast], None] = lambda cast: None,
) -> Step:
    """As stages/ppo.py has it."""
    experience, completions = collect(prompts, rows, cast.actors, config, KEY)
    if running is None and config.normalize_scores == "running":
        running = RunningScores()
    targets = find_targets(experience, config, KL_COEF, running)
    before_update(cast)
    statistics, fault = update(cast.policy, cast.value, experience, targets, config, KEY)
    return Step(experience, completions, targets, statistics, fault)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([whole(parameter).detach().flatten() for parameter in model.parameters()]).clone()
