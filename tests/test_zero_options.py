"""What DeepSpeed is told of a recipe, and what a file of its settings may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, TINY

from launch.checking.recipe import problems
from rlhf.config import ParallelismConfig
from rlhf.engine import zero_section
from rlhf.engine.zero_options import to_deepspeed
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from stages.preflight import check, deepspeed_takes_files

MAX_GRAD_NORM = 0.7


def settings(folder: Path, content: Any, strategy: str = "zero3", **fields: Any) -> dict[str, Any]:
    """What DeepSpeed is told where the user's file holds some content."""
    path = folder / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    parallelism = ParallelismConfig.model_validate({"strategy": strategy, "deepspeed": str(path), **fields})
    return to_deepspeed(parallelism, MAX_GRAD_NORM)


def test_without_a_file() -> None:
    told = to_deepspeed(ParallelismConfig(strategy="zero2", cpu_offload=True), MAX_GRAD_NORM, gpu=True)
    assert told["gradient_clipping"] == MAX_GRAD_NORM
    assert told["zero_optimization"]["stage"] == 2
    assert told["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in told["zero_optimization"]
    zero3 = to_deepspeed(ParallelismConfig(strategy="zero3", cpu_offload=True), MAX_GRAD_NORM)["zero_optimization"]
    assert zero3["offload_param"] == zero3["offload_optimizer"] == {"device": "cpu", "pin_memory": False}


def test_a_file_says_all_but_numerics_and_auto_is_the_recipe(tmp_path: Path) -> None:
    """The json that people have for transformers' Trainer, as it is."""
    told = settings(
        tmp_path,
        {
            "bf16": {"enabled": "auto"},
            "optimizer": "auto",
            "gradient_clipping": "auto",
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "steps_per_print": 50,
            "zero_optimization": {"stage": 3, "overlap_comm": True, "stage3_prefetch_bucket_size": "auto"},
        },
    )
    assert told["zero_optimization"]["overlap_comm"] is True
    assert "stage3_prefetch_bucket_size" not in told["zero_optimization"]
    assert told["steps_per_print"] == 50 and told["gradient_clipping"] == MAX_GRAD_NORM
    assert told["train_micro_batch_size_per_gpu"] == 1 and not {"optimizer", "bf16", "train_batch_size"} & told.keys()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"train_batch_size": 8}, "train_batch_size=8: batches are the recipe's"),
        ({"fp16": {"enabled": True}}, "fp16.enabled=true: precision is the recipe's"),
        ({"optimizer": {"type": "Adam"}}, "optimizer: is the recipe's"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler: is the recipe's"),
        ({"gradient_clipping": 1.0}, "gradient_clipping=1.0 but ppo.max_grad_norm=0.7; write auto"),
        (
            {"zero_optimization": {"stage": 2}},
            "zero_optimization.stage=2 but strategy=zero3; write auto, or strategy=zero2",
        ),
        ({"communication_data_type": "fp16"}, "communication_data_type: would change the figures"),
        (
            {"zero_optimization": {"zero_quantized_gradients": True}},
            "zero_quantized_gradients: would change the figures",
        ),
        ({"tensorboard": {"enabled": True}}, "tensorboard: trackers are the recipe's"),
        (
            {"zero_optimisation": {}},
            "zero_optimisation is no setting that is passed on; did you mean zero_optimization?",
        ),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation=false: "),
        ({"zero_allow_untested_optimizer": False}, "zero_allow_untested_optimizer=false: "),
        ("[1]", "holds no object of settings"),
        ({"zero_optimization": 3}, "holds no object of settings"),
        ("{", "is no json"),
    ],
)
def test_contradictions_are_a_line_each(content: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, content)
    (line,) = error.value.problems
    assert line.startswith(f"parallelism.deepspeed={tmp_path}/own.json: ") and problem in line and "\n" not in line


def test_all_contradictions_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, {"train_batch_size": 8, "optimizer": {}, "zero_optimization": {"stage": 1}})
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"train_batch_size": 8}, "batches are the recipe's, sft.batch_size and sft.micro_batch_size cut them"),
        ({"optimizer": {"type": "Adam"}}, "optimizer: is the recipe's (sft.learning_rate, sft.weight_decay, ...)"),
        ({"gradient_clipping": 1.0}, "gradient_clipping=1.0 but sft.max_grad_norm=0.7; write auto"),
        (
            {"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": False}},
            "stage3_gather_16bit_weights_on_model_save=false: checkpoints of sft hold whole weights",
        ),
    ],
)
def test_contradictions_name_the_fields_of_the_stage(content: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    parallelism = ParallelismConfig(strategy="zero3", deepspeed=str(path))
    with pytest.raises(ConfigError) as error:
        to_deepspeed(parallelism, MAX_GRAD_NORM, stage="sft")
    (line,) = error.value.problems
    assert problem in line and "ppo" not in line.lower()


def test_bfloat16_is_within_the_engine_and_nothing_is_sent_in_it() -> None:
    """DeepSpeed turns autocast off that it was not told of, on GPUs."""
    told = to_deepspeed(ParallelismConfig(strategy="zero2"), MAX_GRAD_NORM, bfloat16=True)
    assert told["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert "torch_autocast" not in to_deepspeed(ParallelismConfig(strategy="zero2"), MAX_GRAD_NORM)


def test_offloading_both_ways(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="offload_param.device=none but cpu_offload=true"):
        settings(tmp_path, {"zero_optimization": {"offload_param": {"device": "none"}}}, cpu_offload=True)
    own = {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/local"}}}
    told = settings(tmp_path, own, cpu_offload=True)["zero_optimization"]
    assert told["offload_optimizer"]["device"] == "nvme" and told["offload_param"]["device"] == "cpu"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.json: cannot be read"):
        to_deepspeed(ParallelismConfig(strategy="zero2", deepspeed=str(tmp_path / "absent.json")), MAX_GRAD_NORM)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"strategy": "ddp", "deepspeed": "own.json"},
            "deepspeed=own.json with strategy=ddp, which DeepSpeed does not run",
        ),
        ({"strategy": "zero2", "shard_over": 2}, "shard_over=2 with strategy=zero2: groups of processes are fsdp's"),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ParallelismConfig.model_validate(fields)


def test_what_deepspeed_would_refuse_is_said_before_anything_runs(tmp_path: Path) -> None:
    """By its own model, of the version that is installed; by a process of its own, so that nothing here loads torch."""
    path = tmp_path / "own.json"
    section = {
        "reduce_bucket_sise": 5e8,
        "stage3_prefetch_bucket_size": "auto",
        "overlap_comm": "perhaps",
        "offload_optimizer": {"device": "cpu", "buffer_cuont": 4},
        "leaf_module": {"classes": ["A"]},
    }
    path.write_text(json.dumps({"zero_optimization": section}))
    recipe = load_recipe(TINY, [f"ppo.parallelism={{strategy: zero3, deepspeed: {path}}}"])
    with pytest.raises(ConfigError) as error:
        check(recipe, ["ppo"], lambda stage: 1)
    field = f"ppo: parallelism.deepspeed={path}: zero_optimization"
    assert error.value.problems[:3] == (
        f'{field}.overlap_comm="perhaps": Input should be a valid boolean, unable to interpret input; mend it',
        f"{field}.offload_optimizer.buffer_cuont is no setting of DeepSpeed; did you mean buffer_count?",
        f"{field}.reduce_bucket_sise is no setting of DeepSpeed; did you mean reduce_bucket_size?",
    )
    assert len(error.value.problems) == 3
    # One file for all stages: a part of Adam's state is offloaded under ZeRO-3 alone, which is PPO's.
    section = {"reduce_bucket_size": 5e8, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}
    path.write_text(json.dumps({"zero_optimization": section}))
    of_all = f"parallelism={{strategy: zero2, deepspeed: {path}}}"
    recipe = load_recipe(TINY, [of_all, f"ppo.parallelism={{strategy: zero3, deepspeed: {path}}}"])
    with pytest.raises(ConfigError) as error:
        deepspeed_takes_files(recipe, ["sft", "reward", "ppo"], warn=pytest.fail)
    (line,) = error.value.problems
    assert line.startswith(f"sft, reward: parallelism.deepspeed={path}: zero_optimization: Partial offloading"), line


FAILS = {"does not load": "raise ImportError('no libcuda.so')", "takes for ever": "import time; time.sleep(600)"}


@pytest.mark.parametrize("fault", FAILS)
def test_a_deepspeed_that_does_not_load_here_refuses_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "deepspeed" / "__init__.py"
    package.parent.mkdir()
    package.write_text(FAILS[fault])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    if fault == "takes for ever":
        monkeypatch.setattr(zero_section, "LOADS_SECONDS", 1.0)
    path = tmp_path / "own.json"
    path.write_text("{}")
    recipe = load_recipe(TINY, [f"ppo.parallelism={{strategy: zero3, deepspeed: {path}}}"])
    unknown: list[str] = []
    assert problems(recipe, 1, False, unknown.append) == []
    (line,) = unknown
    said = "(ImportError: no libcuda.so)" if fault == "does not load" else "within 1 s"
    start = f"parallelism.deepspeed={path}: zero_optimization is not checked: DeepSpeed does not load {said}; "
    assert line.startswith(start), line
