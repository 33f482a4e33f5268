"""What DeepSpeed is told: the recipe's settings, over a file of the user's own. Loads neither torch nor DeepSpeed.

The recipe decides what the figures are: batches, optimizer, clipping, precision. A file may say all the rest, how
weights are partitioned, moved and offloaded; `auto` in it means the recipe's. A contradiction is an error.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.config import ParallelismConfig
from rlhf.errors import ConfigError

ZERO = "zero_optimization"
BUCKET, BUCKET_ENTRIES = "reduce_bucket_size", 50_000_000  # DeepSpeed's own takes 2 GB for each model that learns
WHOLE = "stage3_gather_16bit_weights_on_model_save"  # in the precision in which they are held, whatever its name
BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
PRECISIONS = ("fp16", "bf16", "bfloat16", "amp", "torch_autocast")
NUMERIC: tuple[str, ...] = (
    *("communication_data_type", "seq_parallel_communication_data_type", "data_types", "sparse_gradients"),
    *("prescale_gradients", "gradient_predivide_factor", "zero_force_ds_cpu_optimizer"),
)
QUANTIZED = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")
TRACKERS = ("tensorboard", "wandb", "comet", "csv_monitor")
# DeepSpeed passes over a key that it does not know; of those that it does, these mean something here.
KNOWN: tuple[str, ...] = (
    *BATCHES,
    *PRECISIONS,
    ZERO,
    *NUMERIC,
    *TRACKERS,
    *("gradient_clipping", "optimizer", "scheduler", "managed_gradient_accumulation", "zero_allow_untested_optimizer"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler", "comms_logger"),
    *("activation_checkpointing", "aio", "checkpoint", "timers", "use_node_local_storage", "disable_allgather"),
)


def to_deepspeed(
    parallelism: ParallelismConfig,
    max_grad_norm: float,
    gpu: bool = False,
    stage: str = "ppo",
    bfloat16: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's settings: of PPO for an engine that sums over micro-batches until it is told to step.

    Of another stage they are for transformers' Trainer. max_grad_norm: of the whole gradient. gpu: whether tensors that
    wait in the CPU's memory are pinned there. bfloat16: forwards compute in it. Raises ConfigError, a line for each of
    the file's settings that contradicts the recipe.
    """
    settings = own_settings(parallelism, max_grad_norm, stage) if parallelism.deepspeed else {}
    zero = settings.setdefault(ZERO, {})
    zero |= {"stage": parallelism.stage}
    if parallelism.cpu_offload:
        waiting = {"device": "cpu", "pin_memory": gpu}
        zero.setdefault("offload_optimizer", dict(waiting))
        if parallelism.stage == 3:
            zero.setdefault("offload_param", dict(waiting))
    zero.setdefault(BUCKET, BUCKET_ENTRIES)
    # DeepSpeed wants numbers, and PPO never uses them: it cuts micro-batches by tokens and says which is the last. The
    # trainer fills in its own once packing has settled them.
    number: int | str = 1 if stage == "ppo" else "auto"
    if stage != "ppo" and parallelism.stage == 3:
        zero[WHOLE] = True
        zero.setdefault("stage3_param_persistence_threshold", "auto")  # by width: vectors stay whole, matrices do not
    if bfloat16:
        # Within its engine DeepSpeed turns the autocast of others off. All is still sent as it is held, in float32.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return settings | {
        "train_micro_batch_size_per_gpu": number,
        "gradient_accumulation_steps": number,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": settings.get("steps_per_print", 1_000_000_000),  # our own figures are logged
    }


def layout_of(parallelism: ParallelismConfig) -> str | None:
    """A digest of what may decide where DeepSpeed keeps which weight; None where it does not run.

    Its checkpoints are read by position: under other settings a weight may find another's moments.
    """
    if not parallelism.stage:
        return None
    own = Path(parallelism.deepspeed).read_text(encoding="utf-8") if parallelism.deepspeed else ""
    return hashlib.sha256(f"{parallelism.cpu_offload} {own}".encode()).hexdigest()[:8]


def own_settings(parallelism: ParallelismConfig, max_grad_norm: float, stage: str) -> dict[str, Any]:
    """What the user's file says, without `auto`. Raises ConfigError."""
    field = f"parallelism.deepspeed={parallelism.deepspeed}"
    try:
        settings = json.loads(Path(str(parallelism.deepspeed)).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{field}: cannot be read ({error.strerror}); give the path of a json file") from error
    except ValueError as error:
        raise ConfigError(f"{field}: is no json ({error}); mend it") from error
    if not isinstance(settings, dict) or not isinstance(settings.get(ZERO, {}), dict):
        raise ConfigError(f"{field}: holds no object of settings; see DeepSpeed's documentation of its json")
    settings = without_auto(settings)
    problems = [f"{field}: {problem}" for problem in contradictions(settings, parallelism, max_grad_norm, stage)]
    if problems:
        raise ConfigError(*problems)
    return {key: value for key, value in settings.items() if key not in (*BATCHES, *PRECISIONS)}


def without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that are left to whoever starts DeepSpeed."""
    inner = {key: without_auto(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in inner.items() if value != "auto"}


def contradictions(
    settings: dict[str, Any], parallelism: ParallelismConfig, max_grad_norm: float, stage: str
) -> Iterator[str]:
    """What a file says against the recipe, or what nobody would read, each with its remedy."""
    for key in settings:
        if key not in KNOWN:
            close = difflib.get_close_matches(key, KNOWN, n=1)
            yield f"{key} is no setting that is passed on" + (
                f"; did you mean {close[0]}?" if close else "; leave it out"
            )
    cut = "ppo.micro_batch_tokens cuts" if stage == "ppo" else f"{stage}.batch_size and {stage}.micro_batch_size cut"
    for key in BATCHES:
        if key in settings:
            yield f"{key}={settings[key]}: batches are the recipe's, {cut} them; write auto"
    for key in PRECISIONS:
        if isinstance(settings.get(key), dict) and settings[key].get("enabled"):
            yield f"{key}.enabled=true: precision is the recipe's, model.dtype=bfloat16 computes in it; write auto"
    for key in NUMERIC:
        if key in settings:
            yield f"{key}: would change the figures; leave it out"
    for key in QUANTIZED:
        if settings.get(ZERO, {}).get(key):
            yield f"{ZERO}.{key}: would change the figures; leave it out"
    for key in TRACKERS:
        if key in settings:
            yield f"{key}: trackers are the recipe's (tracking.wandb, tracking.tensorboard, ...); leave it out"
    for key in ("optimizer", "scheduler"):
        if key in settings:
            yield f"{key}: is the recipe's ({stage}.learning_rate, {stage}.weight_decay, ...); leave it out"
    if settings.get("zero_allow_untested_optimizer") is False:
        yield "zero_allow_untested_optimizer=false: the recipe's optimizer is torch's AdamW; leave it out"
    if settings.get("managed_gradient_accumulation") is False:
        yield f"managed_gradient_accumulation=false: {stage} says which micro-batch is a step's last; leave it out"
    clipping = settings.get("gradient_clipping", max_grad_norm)
    if clipping != max_grad_norm:
        yield f"gradient_clipping={clipping} but {stage}.max_grad_norm={max_grad_norm:g}; write auto"
    zero = settings.get(ZERO, {})
    if zero.get("stage", parallelism.stage) != parallelism.stage:
        other = zero["stage"]
        yield f"{ZERO}.stage={other} but strategy={parallelism.strategy}; write auto, or strategy=zero{other}"
    if stage != "ppo" and zero.get(WHOLE) is False:
        yield f"{ZERO}.{WHOLE}=false: checkpoints of {stage} hold whole weights; leave it out"
    for key in ("offload_optimizer", "offload_param"):
        part = zero.get(key)
        if parallelism.cpu_offload and isinstance(part, dict) and part.get("device", "cpu") == "none":
            yield f"{ZERO}.{key}.device=none but cpu_offload=true; leave one of them out"
