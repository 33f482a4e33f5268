"""The two supervised stages, processes, and checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.sections import Address, AffectsNothing, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class ParallelismConfig(Section):
    """How many processes, and how they share a model."""

    processes: PositiveInt | Literal["auto"] = "auto"  # auto: one per GPU, one on a machine without
    # ddp: each has the whole model. fsdp: weights, gradients and optimizer are shared out, as are PPO's frozen models.
    # By DeepSpeed: zero1 shares out the optimizer, zero2 gradients too, zero3 all that fsdp does. SFT and reward need
    # GPUs for all but ddp; evaluate runs under ddp.
    strategy: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = "ddp"
    cpu_offload: bool = False  # what is shared out waits in the CPU's memory; zero1, zero2: the optimizer
    shard_over: PositiveInt | None = None  # PPO, fsdp: processes that share one copy, those of a node, say; null: all
    # zero1, zero2, zero3: a file of DeepSpeed's own settings (json), for all but numerics.
    deepspeed: Annotated[str | None, Address()] = None

    @property
    def stage(self) -> int:
        """DeepSpeed's number of the strategy; 0 where it is not DeepSpeed's."""
        return int(self.strategy.removeprefix("zero")) if self.strategy.startswith("zero") else 0

    @model_validator(mode="after")
    def _settings_are_of_the_strategy(self) -> ParallelismConfig:
        if self.strategy == "ddp" and (self.cpu_offload or self.shard_over):
            given = "cpu_offload=true" if self.cpu_offload else f"shard_over={self.shard_over}"
            raise ValueError(f"{given} with strategy=ddp, which shares nothing out; use strategy=fsdp, or leave it out")
        if self.stage and self.shard_over:
            raise ValueError(
                f"shard_over={self.shard_over} with strategy={self.strategy}: groups of processes are fsdp's; use "
                "strategy=fsdp, or zero_hpz_partition_size in a file of DeepSpeed's settings"
            )
        if self.deepspeed and not self.stage:
            raise ValueError(
                f"deepspeed={self.deepspeed} with strategy={self.strategy}, which DeepSpeed does not run; use "
                "strategy=zero2 or zero3, or leave it out"
            )
        return self


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

    # A causal language model to take instead of training one: a directory, an adapter's, or org/name@COMMIT. The
    # weights' content is fingerprinted.
    use: Annotated[str | None, AffectsNothing, Address()] = None
    epochs: PositiveFloat = 3.0
    packing: bool = True


class RewardServerConfig(Section):
    """How a reward over HTTP is asked."""

    batch_size: PositiveInt = 64  # responses per request
    timeout_seconds: PositiveFloat = 60.0  # of one request
    # For so long a server that is away is asked again, for all batches of a call together: a reward's and a judge's
    # patience must end before the other ranks' in a collective do, at 600 s.
    patience_seconds: Annotated[float, Field(gt=0, le=270)] = 240.0


class RewardConfig(StageConfig):
    """Bradley-Terry reward model on comparisons, started from the SFT model."""

    # A reward to take instead of training one: a reward model (a directory, an adapter's, or org/name@COMMIT), the
    # address of a server (http://...), or package.module:function. The content, of a server the address, is
    # fingerprinted.
    use: Annotated[str | None, AffectsNothing, Address("RLHF_REWARD_TOKEN")] = None
    server: Annotated[RewardServerConfig, AffectsNothing] = RewardServerConfig()
    # A reward model to train on, in place of a fresh one on top of the SFT model: a run's directory, or a model's, with
    # the SFT model's tokenizer. The weights' content is fingerprinted.
    start: Annotated[str | None, AffectsNothing, Address()] = None

    learning_rate: NonNegativeFloat = 3e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    center: NonNegativeFloat = 0.01  # weight of (r_chosen + r_rejected)^2, Eisenstein et al. 2023

    @model_validator(mode="after")
    def _starts_where_it_is_trained(self) -> RewardConfig:
        if self.start is not None and self.use is not None:
            raise ValueError(f"start={self.start} with use={self.use}: what is used is not trained; remove one of them")
        return self


class CheckpointConfig(Section):
    """When the complete state of a training stage is written, and how much of it is kept."""

    every_steps: PositiveInt | None = 25  # optimizer steps of SFT and reward, steps of PPO; null: by time alone
    every_minutes: PositiveFloat | None = 15.0  # whichever comes first
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None  # and each whose step is a multiple of this
    keep_best: bool = True  # and the best by held-out score, where a stage evaluates while it trains
    # PPO: training goes on while a copy of its state is written; the copies take room in the CPU's memory.
    asynchronous: Annotated[bool, AffectsNothing] = False
    grace_seconds: PositiveFloat = 60.0  # from the signal to stop until the launcher ends a stage that has not


class WatchdogConfig(Section):
    """When ranks that wait for each other in vain are told of, and when their stage is ended; null: nobody watches."""

    warn_seconds: PositiveFloat = 20.0  # that the others wait for a rank, or that it gives no sign, until it is named
    # And until the stage is ended. Waits that are legal, such as for a reward over HTTP or for a checkpoint, announce
    # how long they may take and do not count.
    abort_seconds: PositiveFloat = 300.0

    @model_validator(mode="after")
    def _told_before_it_ends(self) -> WatchdogConfig:
        if self.abort_seconds < self.warn_seconds:
            raise ValueError(
                f"abort_seconds={self.abort_seconds:g} is before warn_seconds={self.warn_seconds:g}; "
                f"use warn_seconds={self.abort_seconds:g} or less"
            )
        return self
