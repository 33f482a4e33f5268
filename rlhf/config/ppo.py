"""PPO: sampling, the KL penalty, the update, evaluation while it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.sections import AffectsNothing, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section
from rlhf.config.training import ParallelismConfig


class GenerationConfig(Section):
    """How responses are sampled."""

    engine: Literal["native"] = "native"
    weights: Literal["shared"] = "shared"
    max_new_tokens: PositiveInt = 24
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    batch_size: Annotated[PositiveInt, AffectsNothing] = 256  # rows of a rank decoded together


class KlConfig(Section):
    """The penalty that keeps the policy near the reference."""

    coef: NonNegativeFloat = 0.05  # beta, reward per nat
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: PositiveFloat | None = None  # adaptive: nats per response, Ziegler et al. 2019
    horizon: PositiveInt = 10_000  # adaptive: episodes
    estimator: Literal["k1"] = "k1"
    place: Literal["reward"] = "reward"

    @model_validator(mode="after")
    def _adaptive_has_target(self) -> KlConfig:
        if (self.controller == "adaptive") != (self.target is not None):
            raise ValueError(
                f"controller={self.controller} with target={self.target}: an adaptive controller needs a target "
                "in nats per response, for example target=6.0, and a fixed one takes none"
            )
        return self


class HeldOutConfig(Section):
    """Evaluation while PPO trains: fixed held-out prompts, always sampled with the same noise."""

    prompts: PositiveInt = 64
    # What scores them besides the reward, and then decides which policy is the best: a reward model, an address or
    # package.module:function, as in reward.use. null: the reward itself, which the policy is trained to please.
    judge: str | None = None
    patience: PositiveInt | None = None  # evaluations without a better score until PPO ends early; null: never


class PpoConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017) with a KL penalty (Ziegler et al. 2019)."""

    steps: PositiveInt = 150
    prompts_per_step: PositiveInt = 64  # over all ranks
    generation: GenerationConfig = GenerationConfig()
    kl: KlConfig = KlConfig()
    advantage: Literal["gae"] = "gae"
    gamma: Fraction = 1.0
    lam: Fraction = 0.95  # lambda of GAE
    clip: PositiveFloat = 0.2  # epsilon of the ratio
    value_clip: PositiveFloat = 0.2
    epochs: PositiveInt = 2  # passes over each rollout
    minibatches: PositiveInt = 2  # optimizer steps per epoch
    micro_batch_tokens: Annotated[PositiveInt, AffectsNothing] = 4096  # padded tokens per forward and rank
    learning_rate: NonNegativeFloat = 3e-4
    value_learning_rate: NonNegativeFloat | None = None  # null: learning_rate
    learning_rate_end: Fraction = 0.1  # linear decay to this share
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    normalize_scores: bool = True  # by the mean and deviation that the reward artifact records
    missing_eos_penalty: NonNegativeFloat = 0.0  # taken off the score of a response that ran out of length
    evaluate_every: Annotated[int, Field(ge=0)] = 25  # steps, and before the first and after the last; 0: never
    held_out: HeldOutConfig = HeldOutConfig()
    hand_on: Literal["last", "best"] = "last"  # the policy in model/; the best by held-out score is always in best/
    parallelism: Annotated[ParallelismConfig | None, AffectsNothing] = None

    @model_validator(mode="after")
    def _batch_divides(self) -> PpoConfig:
        if self.prompts_per_step % self.minibatches:
            nearest = max(1, self.prompts_per_step // self.minibatches) * self.minibatches
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} does not split into minibatches={self.minibatches}; "
                f"use prompts_per_step={nearest}"
            )
        return self

    @model_validator(mode="after")
    def _evaluated_where_it_matters(self) -> PpoConfig:
        for name in ("judge", "patience") if not self.evaluate_every else ():
            if (value := getattr(self.held_out, name)) is not None:
                raise ValueError(
                    f"evaluate_every=0 with held_out.{name}={value}: nothing is evaluated while PPO trains; use "
                    f"evaluate_every=25 or remove held_out.{name}"
                )
        if self.hand_on == "best" and not self.evaluate_every:
            raise ValueError(
                "hand_on=best with evaluate_every=0: no policy is known to be the best; use evaluate_every=25 or "
                "hand_on=last"
            )
        return self
