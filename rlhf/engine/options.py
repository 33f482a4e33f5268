"""The recipe's settings as the options of the libraries that train for us. Loads neither torch nor trl."""

from __future__ import annotations

from typing import Any

from rlhf.config import ModelConfig, StageConfig
from rlhf.errors import ConfigError


def to_training_arguments(
    config: StageConfig, model: ModelConfig, *, stage: str, seed: int, processes: int, cpu: bool, strategy: str = "ddp"
) -> dict[str, Any]:
    """Arguments of transformers' Trainer and TRL's; every default of theirs that touches numerics is set here.

    Raises ConfigError where the batch does not split over processes and micro-batches, or another strategy is wanted.
    """
    require_ddp(stage, strategy)
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
    return {
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": per_rank // micro,
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
    }


def require_ddp(stage: str, strategy: str) -> None:
    """Raise ConfigError where a stage that has whole models on each process is to share them out."""
    if strategy != "ddp":
        raise ConfigError(
            f"parallelism.strategy={strategy}: {stage} runs under ddp alone; give PPO a section of its own, "
            f"ppo.parallelism={{strategy: {strategy}}}"
        )
