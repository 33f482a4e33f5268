"""What TRL's trainers are told of a recipe, and what transformers and accelerate make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import TINY, rlhf

from rlhf.config import ModelConfig, ParallelismConfig, SftConfig
from rlhf.engine.options import to_training_arguments
from rlhf.errors import ConfigError

CONFIG = SftConfig(batch_size=32, micro_batch_size=4, max_grad_norm=0.7)
PLAIN = ModelConfig(dtype="float32", activation_checkpointing=False)  # as the stage has settled `auto`
# Prints what is built of arguments: of FSDP what accelerate's plugin has, of ZeRO DeepSpeed's settings once filled in.
BUILD = """
import json, sys
from accelerate.utils import FullyShardedDataParallelPlugin as Plugin
from stages.sft import SFTConfig

made = []
for arguments in json.loads(sys.argv[1]):
    built = SFTConfig(output_dir="never-written", packing=False, **arguments)
    record = {"recomputes": built.gradient_checkpointing, "bf16": built.bf16}
    if built.fsdp:
        plugin = Plugin(**built.fsdp_plugin_args)
        record |= {"told": built.fsdp_plugin_args, "loads_by_main": plugin.cpu_ram_efficient_loading}
        record |= {"offloads": type(plugin.cpu_offload).__name__, "state": plugin.state_dict_type.name}
        record |= {"version": plugin.fsdp_version, "recomputes_blocks": plugin.activation_checkpointing}
    else:
        built.deepspeed_plugin.set_mixed_precision(built.mixed_precision)  # as accelerate does
        record |= {"told": built.hf_deepspeed_config.config, "mismatches": built.hf_deepspeed_config.mismatches}
        record |= {"stage": built.deepspeed_plugin.zero_stage}
    made.append(record)
print(json.dumps(made))
"""


def arguments(cpu: bool = False, model: ModelConfig | None = None, **parallelism: Any) -> dict[str, Any]:
    chosen = ParallelismConfig.model_validate(parallelism)
    return to_training_arguments(CONFIG, model or PLAIN, stage="sft", seed=0, processes=1, cpu=cpu, parallelism=chosen)


@pytest.mark.parametrize("strategy", ["fsdp", "zero1", "zero2", "zero3"])
def test_a_cpu_is_refused_in_a_line_that_says_what_to_do(strategy: str) -> None:
    with pytest.raises(ConfigError) as error:
        arguments(cpu=True, strategy=strategy)
    (line,) = error.value.problems
    assert line.startswith(f"parallelism.strategy={strategy}: sft needs GPUs")
    assert "use sft.parallelism={strategy: ddp}" in line and f"ppo.parallelism={{strategy: {strategy}}}" in line


def test_ddp_runs_everywhere_and_shares_nothing_out() -> None:
    told = arguments(cpu=True, strategy="ddp", model=ModelConfig(dtype="bfloat16"))
    assert told["bf16"] is True and not {"fsdp", "fsdp_config", "deepspeed"} & told.keys()


def test_groups_of_processes_are_ppos() -> None:
    with pytest.raises(ConfigError, match="shard_over=2: groups of processes are PPO's"):
        arguments(strategy="fsdp", shard_over=2)


def test_what_the_libraries_make_of_them(tmp_path: Path) -> None:
    """Constructed for real, in a process of its own: accelerate keeps what it was told first."""
    recomputing = ModelConfig(dtype="bfloat16", activation_checkpointing=True)
    told = [
        arguments(strategy="fsdp", model=recomputing),
        arguments(strategy="fsdp", cpu_offload=True),
        arguments(strategy="zero2", model=recomputing),
        arguments(strategy="zero3"),
    ]
    environment = {**os.environ, "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "0", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", PREPARE + BUILD, json.dumps(told)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fsdp, offloaded, zero2, zero3 = json.loads(done.stdout.splitlines()[-1])
    assert fsdp["told"] == {
        "fsdp_version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_ram_efficient_loading": False,
        "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": True,
        "reshard_after_forward": True,
    }
    assert fsdp["version"] == 2 and fsdp["state"] == "FULL_STATE_DICT" and not fsdp["loads_by_main"]
    assert fsdp["recomputes_blocks"] and not fsdp["recomputes"]  # by one of them, not by both
    assert offloaded["told"]["cpu_offload"] is True and not offloaded["recomputes_blocks"]
    assert (fsdp["offloads"], offloaded["offloads"]) == ("OffloadPolicy", "CPUOffloadPolicy")
    assert zero2["recomputes"] and not zero3["recomputes"]
    assert not fsdp["bf16"] and not zero2["bf16"]  # ours, or weights and gradients would be cut down to it
    assert (zero2["stage"], zero3["stage"]) == (2, 3)
    for made in (zero2, zero3):
        settings = made["told"]
        assert made["mismatches"] == [] and settings["gradient_clipping"] == CONFIG.max_grad_norm
        assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == (4, 8)
        assert not settings["bf16"]["enabled"] and not settings["fp16"]["enabled"]
        assert settings["zero_allow_untested_optimizer"] and "optimizer" not in settings
    assert zero3["told"]["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert zero2["told"]["torch_autocast"]["enabled"] and "torch_autocast" not in zero3["told"]


PREPARE = """
from rlhf.distributed import join_process_group
from rlhf.engine.zero import load_deepspeed

join_process_group(alone=True)
load_deepspeed()
"""


def test_where_there_is_a_gpu_nothing_is_refused_before_the_stage_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("sft.parallelism={strategy: zero2}", "reward.parallelism={strategy: fsdp}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    done = rlhf("run", str(TINY), *chosen, "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = rlhf("run", str(TINY), *chosen, "--dry-run", folder=tmp_path)
    assert done.returncode == 2 and "zero2: sft needs GPUs" in done.stderr and "fsdp: reward needs" in done.stderr
