"""PPO: from a rollout to an update, step after step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.rollout import (
    FaultsConfig,
    GenerationConfig,
    HeldOutConfig,
    KlConfig,
    OverlongConfig,
    RewardTermConfig,
)
from rlhf.config.sections import (
    BARE_OFF,
    AffectsNothing,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)
from rlhf.config.training import ParallelismConfig

Advantage = Literal["gae", "rloo", "reinforce++", "grpo"]
Normalization = Literal["whiten", "center", "none"]


class PpoConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017) with a KL penalty (Ziegler et al. 2019).

    docs/ppo.md explains every field.
    """

    steps: PositiveInt = 150
    prompts_per_step: PositiveInt = 64  # over all ranks
    responses_per_prompt: PositiveInt = 1  # rloo and grpo compare them, and need two at least
    generation: GenerationConfig = GenerationConfig()
    kl: KlConfig = KlConfig()

    reward_weight: float = 1.0  # of the reward stage's score, beside `rewards`
    rewards: list[RewardTermConfig] = []
    # recorded: by the mean and deviation that the reward artifact records; running: by those of all scores so far.
    normalize_scores: Literal["recorded", "running", "none"] = "recorded"
    score_scale: PositiveFloat = 1.0  # after that
    score_clip: PositiveFloat | None = None  # then to [-score_clip, score_clip]
    missing_eos_penalty: NonNegativeFloat = 0.0  # taken off the score of a response that ran out of length
    overlong: OverlongConfig | None = None

    advantage: Advantage = "gae"
    gamma: Fraction = 1.0
    lam: Fraction = 0.95  # lambda of GAE
    value_lam: Fraction | None = None  # lambda of the returns that the value model learns; null: lam
    whiten_rewards: bool = False  # per-token rewards to unit deviation, their mean kept (Ziegler et al. 2019)
    # whiten: mean 0 and deviation 1 over all tokens of the step; center: mean 0. auto: whiten for gae and reinforce++,
    # none for rloo and grpo, which compare the responses to one prompt.
    normalize_advantages: Literal["auto"] | Normalization = "auto"

    ratio: Literal["token", "sequence"] = "token"  # sequence: geometric mean over the response (Zheng et al. 2025)
    clip: PositiveFloat = 0.2  # epsilon of the ratio
    clip_high: PositiveFloat | None = None  # the upper epsilon; null: clip (Yu et al. 2025)
    importance_cap: PositiveFloat | None = None  # truncated importance sampling, trainer over sampler; null: no weights
    entropy_bonus: NonNegativeFloat = 0.0  # reward per nat of entropy, per token
    target_kl: PositiveFloat | None = None  # nats per token from the sampling policy: the update beyond it is dropped

    # reward: the reward model's weights; policy: the policy's, with a head of zeros; trunk: a head on the policy, which
    # then learns both; auto: reward where it is a model that reads the policy's tokens, else policy.
    value_start: Literal["auto", "reward", "policy", "trunk"] = "auto"
    value_clip: PositiveFloat | None = 0.2
    value_coef: PositiveFloat = 0.1  # of the value's loss beside the policy's, where they share a trunk
    value_warmup_steps: Annotated[int, Field(ge=0)] = 0  # first of `steps`, in which the value model alone learns
    value_learning_rate: NonNegativeFloat | None = None  # null: learning_rate

    epochs: PositiveInt = 2  # passes over each rollout
    minibatches: PositiveInt = 2  # optimizer steps per epoch
    # Tokens per forward and rank; padding counts where a model cannot pack.
    micro_batch_tokens: Annotated[PositiveInt, AffectsNothing] = 4096
    learning_rate: NonNegativeFloat = 3e-4
    learning_rate_end: Fraction = 0.1  # linear decay to this share
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    # Whether the reward stage's reward is asked about responses which have ended while others are still sampled: where
    # it is a server; all: or a function, which another thread then calls. A model would compete for the same device.
    overlap_scoring: Annotated[Literal["servers", "all", "off"], BARE_OFF, AffectsNothing] = "servers"
    # What waits in the CPU's memory while it is not used: the frozen models, the state of the optimizers.
    offload: Annotated[list[Literal["reference", "reward", "optimizer"]], AffectsNothing] = []
    faults: Annotated[FaultsConfig, AffectsNothing] = FaultsConfig()

    evaluate_every: Annotated[int, Field(ge=0)] = 25  # steps, and before the first and after the last; 0: never
    held_out: HeldOutConfig = HeldOutConfig()
    hand_on: Literal["last", "best"] = "last"  # the policy in model/; the best by held-out score is always in best/
    parallelism: Annotated[ParallelismConfig | None, AffectsNothing] = None

    @property
    def responses_per_step(self) -> int:
        """Rows of a step's rollout, over all ranks."""
        return self.prompts_per_step * self.responses_per_prompt

    def rows_together(self, processes: int = 1) -> int:
        """Rows that a process samples together at most, of a step or of an evaluation between steps."""
        rows = max(self.responses_per_step, self.held_out.prompts if self.evaluate_every else 0)
        return min(self.generation.batch_size, -(-rows // processes))

    @property
    def has_value(self) -> bool:
        """Whether a value model takes part: the other estimators compare responses with each other."""
        return self.advantage == "gae"

    @property
    def unused(self) -> list[str]:
        """Settings that are given although the estimator has no use for them: one override compares estimators."""
        of_value = [name for name in PpoConfig.model_fields if name == "lam" or name.startswith("value_")]
        names = [] if self.has_value else of_value
        names += ["gamma"] if self.advantage in ("rloo", "grpo") else []  # a response is one action
        return [name for name in names if getattr(self, name) != PpoConfig.model_fields[name].default]

    @property
    def has_critic(self) -> bool:
        """Whether the value model is one of its own."""
        return self.has_value and self.value_start != "trunk"

    @property
    def normalization(self) -> Normalization:
        """How advantages are normalised, `auto` settled."""
        if self.normalize_advantages != "auto":
            return self.normalize_advantages
        return "none" if self.advantage in ("rloo", "grpo") else "whiten"

    @model_validator(mode="after")
    def _batch_divides(self) -> PpoConfig:
        if self.responses_per_step % self.minibatches:
            nearest = max(1, self.prompts_per_step // self.minibatches) * self.minibatches
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} does not split into minibatches={self.minibatches}; "
                f"use prompts_per_step={nearest}"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_compared(self) -> PpoConfig:
        if self.advantage in ("rloo", "grpo") and self.responses_per_prompt < 2:
            raise ValueError(
                f"advantage={self.advantage} with responses_per_prompt={self.responses_per_prompt}: it compares "
                "responses to one prompt; use responses_per_prompt=4"
            )
        return self

    @model_validator(mode="after")
    def _sampler_is_corrected(self) -> PpoConfig:
        if self.generation.top_p < 1 and self.importance_cap is None:
            raise ValueError(
                f"generation.top_p={self.generation.top_p} with importance_cap=null: responses would not come from the "
                "policy that is trained; use top_p=1.0, or importance_cap=2.0, which weighs tokens but brings "
                "back none that top-p leaves out"
            )
        return self

    @model_validator(mode="after")
    def _overlong_is_within(self) -> PpoConfig:
        longest = self.generation.max_new_tokens
        if self.overlong and self.overlong.tokens >= longest:
            raise ValueError(
                f"overlong.tokens={self.overlong.tokens} with generation.max_new_tokens={longest}: every response "
                f"would be too long; use overlong.tokens={max(1, longest // 4)}"
            )
        return self

    @model_validator(mode="after")
    def _value_fits(self) -> PpoConfig:
        on_trunk = self.has_value and not self.has_critic
        if on_trunk and self.value_warmup_steps:
            raise ValueError(
                f"value_warmup_steps={self.value_warmup_steps} with value_start=trunk: the policy would move along; "
                "use value_warmup_steps=0, or value_start=policy"
            )
        if on_trunk and self.value_learning_rate is not None:
            raise ValueError(
                f"value_learning_rate={self.value_learning_rate} with value_start=trunk: both share one optimizer; "
                "remove it, or use value_start=policy"
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
