"""The recipe: every setting of a run, strict and frozen. Reading one from a file: `rlhf.recipe.load_recipe`.

A field marked with `AffectsNothing` (where and how fast, not what) stays out of a stage's fingerprint: changing it
never makes a finished stage run again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class AffectsNothing:
    """Marks a field that cannot change a stage's result."""


class Section(BaseModel):
    """Base of all sections: unknown keys, loose types, nan and infinity are errors; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields that affect the result, as plain values."""
        fields = {}
        for name, info in type(self).model_fields.items():
            if any(mark is AffectsNothing for mark in info.metadata):
                continue
            value = getattr(self, name)
            if isinstance(value, list):
                value = [v.fingerprint_fields() if isinstance(v, Section) else v for v in value]
            fields[name] = value.fingerprint_fields() if isinstance(value, Section) else value
        return fields


class InitConfig(Section):
    """A Llama made here, randomly initialised, with a byte-level BPE tokenizer trained on the demonstrations."""

    hidden_size: PositiveInt = 192
    intermediate_size: PositiveInt | None = None  # null: 8/3 of hidden_size, rounded up to a multiple of 8
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    vocab_size: Annotated[int, Field(ge=260)] = 512  # 256 bytes and the special tokens at least
    context: PositiveInt = 160  # tokens

    @property
    def mlp_size(self) -> int:
        """Width of the MLP's inner layer."""
        return self.intermediate_size or -(-self.hidden_size // 3) * 8

    @model_validator(mode="after")
    def _heads_divide(self) -> InitConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} does not split into heads={self.heads} of even width; "
                f"use hidden_size={max(1, self.hidden_size // (2 * self.heads)) * 2 * self.heads}"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021) on all linear layers but the heads; merged when a stage saves its model."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0  # the update is scaled by alpha / rank


class ModelConfig(Section):
    """Where the first stage's weights come from, and how all models compute."""

    # Directory or hub id of a causal language model; null: `init`. The weights' content is fingerprinted.
    path: Annotated[str | None, AffectsNothing] = None
    revision: str | None = None  # commit of a hub id
    init: InitConfig = InitConfig()
    chat_template: Literal["auto", "none"] = "auto"  # none: prompts are plain text that the response continues
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"  # of computation; weights that learn stay in float32
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    activation_checkpointing: Annotated[bool, AffectsNothing] = False
    lora: LoraConfig | None = None


# Held by data.formats, each with an example in docs/data.md; auto: told by the fields of the first records.
PreferenceFormat = Literal["pandalm", "squality", "preference", "hh", "implicit-preference", "rating"]
PromptFormat = Literal["messages", "prompt-completion", "self-instruct", "instruction", "prompt"]
FormatName = Literal["auto", PreferenceFormat, PromptFormat]


class SourceConfig(Section):
    """One source of examples."""

    # toy, stories, on-policy, a file, a directory or org/name@COMMIT of the hub; the content is fingerprinted.
    path: Annotated[str, AffectsNothing]
    format: FormatName = "auto"
    weight: PositiveFloat | None = None  # share of the training examples; null: sources one behind the other, each once
    bad_records: Literal["fail", "drop"] = "fail"  # drop: leave them out, count them and name the first
    prompt: str | None = None  # what rated texts without a prompt of their own answer
    count: PositiveInt | None = None  # the first examples of a source, or how many to draw where it makes them
    held_out: PositiveInt | None = None  # toy: how many of the held-out part; null: its own default
    labeller: str | None = None  # on-policy: package.module:function whose score decides the simulated votes
    sharpness: PositiveFloat = 10.0  # on-policy: P(win) = sigmoid(sharpness * score difference)

    @model_validator(mode="after")
    def _labeller_where_votes_are_made(self) -> SourceConfig:
        if (self.path == "on-policy") != (self.labeller is not None):
            raise ValueError(
                f"path={self.path} with labeller={self.labeller}: path=on-policy needs a labeller, for example "
                "labeller=data.lexicons:vader, and no other source takes one"
            )
        if self.held_out is not None and self.path != "toy":
            raise ValueError(f"held_out={self.held_out} with path={self.path}: other sources hold out by test_fraction")
        return self

    @model_validator(mode="after")
    def _records_where_they_are_read(self) -> SourceConfig:
        for name in ("format", "bad_records", "prompt") if self.path in ("toy", "stories", "on-policy") else ():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={value} with path={self.path}: it reads no records; remove {name}")
        return self


class DataConfig(Section):
    """Demonstrations, comparisons and prompts, and the share of prompts held out of all training."""

    directory: Annotated[str | None, AffectsNothing] = None  # relative paths start here; null: the working directory
    demonstrations: Annotated[list[SourceConfig], Field(min_length=1)] = [SourceConfig(path="toy")]
    comparisons: Annotated[list[SourceConfig], Field(min_length=1)] = [SourceConfig(path="toy")]
    prompts: Annotated[list[SourceConfig], Field(min_length=1)] = [SourceConfig(path="toy")]
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    too_long: Literal["fail", "drop"] = "fail"  # examples of more tokens than max_length; drop: leave out and count


class ParallelismConfig(Section):
    """How many processes, and how they share a model."""

    processes: PositiveInt | Literal["auto"] = "auto"  # auto: one per GPU, one on a machine without
    strategy: Literal["ddp"] = "ddp"


class StageConfig(Section):
    """What the two supervised stages share: AdamW with a linear schedule to zero."""

    learning_rate: NonNegativeFloat = 1e-3
    epochs: PositiveFloat = 1.0
    batch_size: PositiveInt = 64  # examples per optimizer step, over all ranks
    # Examples per forward and rank; null: all. Packed rows are cut to it, so there it changes what shares a step.
    micro_batch_size: Annotated[PositiveInt | None, AffectsNothing] = None
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05  # of all steps
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    max_length: PositiveInt | None = None  # tokens, prompt and response; null: the model's context
    evaluate_every: Annotated[int, Field(ge=0), AffectsNothing] = 0  # steps; 0: held-out loss at the end alone
    parallelism: Annotated[ParallelismConfig | None, AffectsNothing] = None  # null: the recipe's


class SftConfig(StageConfig):
    """Supervised fine-tuning on demonstrations."""

    epochs: PositiveFloat = 3.0
    packing: bool = True


class RewardConfig(StageConfig):
    """Bradley-Terry reward model on comparisons, started from the SFT model."""

    learning_rate: NonNegativeFloat = 3e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    center: NonNegativeFloat = 0.01  # weight of (r_chosen + r_rejected)^2, Eisenstein et al. 2023


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
    evaluate_every: Annotated[int, Field(ge=0), AffectsNothing] = 25  # steps; 0: never. Fixed held-out prompts
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


class EvaluateConfig(Section):
    """The comparison of the aligned policy with the SFT model on held-out prompts."""

    prompts: PositiveInt = 256  # responses from each policy; prompts repeat if fewer are held out
    gold: str | None = None  # package.module:function in [0, 1], never seen by a stage; null: the reward model
    second_gold: str | None = None  # another one, reported beside it
    parallelism: Annotated[ParallelismConfig | None, AffectsNothing] = None


class CheckpointConfig(Section):
    """When the complete state of a training stage is written, and how much of it is kept."""

    every_steps: PositiveInt | None = 25  # optimizer steps of SFT and reward, steps of PPO; null: by time alone
    every_minutes: PositiveFloat | None = 15.0  # whichever comes first
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None  # and each whose step is a multiple of this
    keep_best: bool = True  # and the best by held-out score, where a stage evaluates while it trains
    grace_seconds: PositiveFloat = 60.0  # from the signal to stop until the launcher ends a stage that has not


class WandbConfig(Section):
    """Weights & Biases."""

    project: str = "rlhf"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with WANDB_API_KEY, else offline


class TrackingConfig(Section):
    """Where figures go besides metrics.jsonl."""

    wandb: WandbConfig = WandbConfig()


class Recipe(Section):
    """One run, complete."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), AffectsNothing] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PpoConfig = PpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: Annotated[CheckpointConfig, AffectsNothing] = CheckpointConfig()
    tracking: Annotated[TrackingConfig, AffectsNothing] = TrackingConfig()
    parallelism: Annotated[ParallelismConfig, AffectsNothing] = ParallelismConfig()

    def parallelism_of(self, stage: str) -> ParallelismConfig:
        """A stage's own parallelism, or the recipe's."""
        own: ParallelismConfig | None = getattr(self, stage).parallelism
        return own or self.parallelism
