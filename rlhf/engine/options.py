"""The recipe's settings as the options of the libraries that train for us. Loads neither torch nor trl."""

from __future__ import annotations

from typing import Any

from rlhf.config import ModelConfig, ParallelismConfig, StageConfig
from rlhf.engine.zero_options import to_deepspeed
from rlhf.errors import ConfigError

REPLICATED = ParallelismConfig()


def to_training_arguments(
    config: StageConfig,
    model: ModelConfig,
    *,
    stage: str,
    seed: int,
    processes: int,
    cpu: bool,
    parallelism: ParallelismConfig = REPLICATED,
) -> dict[str, Any]:
    """Arguments of transformers' Trainer and TRL's; every default of theirs that touches numerics is set here.

    Raises ConfigError where the batch does not split over processes and micro-batches, or the model cannot be shared
    out as the recipe has it.
    """
    micro, accumulated = micro_batches(config, stage, processes)
    return {
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": config.warmup_fraction,  # below 1, a share of all steps
        "weight_decay": config.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": model.dtype == "bfloat16",  # master weights stay in float32
        "gradient_checkpointing": model.activation_checkpointing,
        "use_cpu": cpu,
        "ddp_backend": "gloo" if cpu and processes > 1 else None,
        "ddp_find_unused_parameters": False,
        "seed": seed,
        "data_seed": seed,
        "dataloader_drop_last": False,
        "dataloader_pin_memory": not cpu,
        "average_tokens_across_devices": True,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # `stages.trainer` saves
        "eval_strategy": "steps" if config.evaluate_every else "no",
        "eval_steps": config.evaluate_every or None,
        "report_to": [],
        "disable_tqdm": True,
        "max_length": None,
        **sharing(config, model, stage, cpu, parallelism),
    }


def micro_batches(config: StageConfig, stage: str, processes: int) -> tuple[int, int]:
    """Examples of each forward on each process, and how many forwards make an optimizer step. Raises ConfigError."""
    if config.batch_size % processes:
        raise ConfigError(
            f"{stage}.batch_size={config.batch_size} does not split over {processes} processes; "
            f"use batch_size={max(1, config.batch_size // processes) * processes}"
        )
    per_rank = config.batch_size // processes
    micro = min(config.micro_batch_size or per_rank, per_rank)
    if per_rank % micro:
        raise ConfigError(
            f"{stage}.micro_batch_size={micro} does not divide the {per_rank} examples of each process; "
            f"use a divisor of {per_rank}"
        )
    return micro, per_rank // micro


def sharing(
    config: StageConfig, model: ModelConfig, stage: str, cpu: bool, parallelism: ParallelismConfig
) -> dict[str, Any]:
    """Arguments under which the trainer shares a model out; none under ddp. Raises ConfigError.

    bfloat16 is the stage's own then (`stages.trainer`): accelerate would send gradients in it, DeepSpeed hold weights.
    """
    if parallelism.strategy == "ddp":
        return {}
    require_gpu(stage, parallelism.strategy, cpu)
    if parallelism.strategy == "fsdp":
        return to_fsdp(parallelism, model, stage)
    settings = to_deepspeed(parallelism, config.max_grad_norm, not cpu, stage, model.dtype == "bfloat16")
    return {"bf16": False, "deepspeed": settings}


def to_fsdp(parallelism: ParallelismConfig, model: ModelConfig, stage: str) -> dict[str, Any]:
    """Arguments of transformers' Trainer that share a model out by FSDP2, block by block. Raises ConfigError."""
    if parallelism.shard_over:
        raise ConfigError(
            f"parallelism.shard_over={parallelism.shard_over}: groups of processes are PPO's; leave it out of "
            f"{stage}.parallelism"
        )
    return {
        "bf16": False,
        "gradient_checkpointing": False,  # the trainer's own would gather each block once more
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # blocks by the model's own account, as for PPO
            "reshard_after_forward": True,
            "cpu_offload": parallelism.cpu_offload,
            "activation_checkpointing": model.activation_checkpointing,
            "cpu_ram_efficient_loading": False,  # each process has read the model before the trainer is there
            "state_dict_type": "FULL_STATE_DICT",  # or a checkpoint would hold no weights that others can read
        },
    }


def require_gpu(stage: str, strategy: str, cpu: bool) -> None:
    """Raise ConfigError where accelerate may replicate a model that is to be shared out, without a word."""
    if cpu and strategy != "ddp":
        raise ConfigError(
            f"parallelism.strategy={strategy}: {stage} needs GPUs for it, for on a CPU accelerate may run ddp without "
            f"a word; use {stage}.parallelism={{strategy: ddp}}, or give PPO a section of its own, "
            f"ppo.parallelism={{strategy: {strategy}}}"
        )


def require_ddp(stage: str, strategy: str) -> None:
    """Raise ConfigError where a stage that has whole models on each process is to share them out."""
    if strategy != "ddp":
        raise ConfigError(
            f"parallelism.strategy={strategy}: {stage} runs under ddp alone; use {stage}.parallelism={{strategy: ddp}}"
        )
