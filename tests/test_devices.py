"""What `auto` means on each device, what a device cannot do, and whether the memory counted is the memory taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from running import TINY, rlhf, stage

from rlhf import sharding
from rlhf.config import ModelConfig, PpoConfig, Recipe
from rlhf.devices import Computation, Hardware, hardware, settled, settled_recipe, use_plain_float32
from rlhf.errors import ConfigError
from rlhf.shapes import Shape, shape_of_config
from stages.frozen import freeze
from tests.qwen import QWEN_05B
from tests.test_models import tiny_policy

GIB = 2**30
CPU = Hardware(name="cpu", threads=2)
T4 = Hardware(name="Tesla T4", index=0, memory=15 * GIB, capability=(7, 5), flash=True)
A10 = Hardware(name="NVIDIA A10", index=0, memory=22 * GIB, capability=(8, 6), flash=True)
A100 = Hardware(name="NVIDIA A100-SXM4-40GB", index=0, memory=39 * GIB, capability=(8, 0))
H200 = Hardware(name="NVIDIA H200", index=0, memory=140 * GIB, capability=(9, 0))


def shape(**changes: Any) -> Shape:
    return shape_of_config({**QWEN_05B, **changes}, "config.json")


@pytest.mark.parametrize(
    ("on", "dtype", "attention"),
    [
        (CPU, "float32", "sdpa"),
        (T4, "float32", "sdpa"),  # bfloat16 would be emulated there
        (A10, "bfloat16", "flash_attention_2"),
        (H200, "bfloat16", "sdpa"),  # the package is not installed
    ],
)
def test_auto_follows_the_device(on: Hardware, dtype: str, attention: str) -> None:
    model = settled(ModelConfig(), on, shape())
    assert (model.dtype, model.attention) == (dtype, attention)


def test_no_flash_attention_in_float32_or_with_odd_heads() -> None:
    assert settled(ModelConfig(dtype="float32"), A10, shape()).attention == "sdpa"
    assert settled(ModelConfig(), A10, shape(head_dim=12)).attention == "sdpa"
    assert settled(ModelConfig(), A10, shape(head_dim=264)).attention == "sdpa"


@pytest.mark.parametrize(
    ("model", "on", "problem"),
    [
        (ModelConfig(dtype="bfloat16"), T4, "Tesla T4 15 GiB has compute capability 7.5 and no bfloat16 arithmetic"),
        (ModelConfig(attention="flash_attention_2"), CPU, "this process computes on a CPU"),
        (ModelConfig(attention="flash_attention_2"), T4, "less than 8.0"),
        (ModelConfig(attention="flash_attention_2"), H200, "is not installed"),
        (ModelConfig(attention="flash_attention_2", dtype="float32"), A10, "no kernels for float32"),
    ],
)
def test_what_a_device_cannot_do_is_one_line(model: ModelConfig, on: Hardware, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        settled(model, on, shape())
    assert "; use model." in str(error.value)
    assert "\n" not in str(error.value)


def test_bfloat16_runs_on_a_cpu_where_it_is_asked_for() -> None:
    assert settled(ModelConfig(dtype="bfloat16"), CPU).dtype == "bfloat16"


def checkpointing(on: Hardware, known: Shape | None = None, **ppo: Any) -> object:
    recipe = Recipe(ppo=PpoConfig(**ppo))
    return settled_recipe(recipe, "ppo", known, on, processes=1).model.activation_checkpointing


def test_activation_checkpointing_where_a_stage_would_not_fit() -> None:
    assert checkpointing(H200, shape()) is False
    assert checkpointing(A100, shape(), micro_batch_tokens=512) is False
    assert checkpointing(A100, shape(), micro_batch_tokens=32_768) is True
    assert checkpointing(A10, shape(), micro_batch_tokens=8_192) is True
    assert checkpointing(H200, shape(), micro_batch_tokens=250_000) is True
    assert checkpointing(CPU, shape(), micro_batch_tokens=120_000) is False
    assert checkpointing(H200) is True  # nobody knows how large the model is


def test_a_setting_of_the_recipe_is_kept() -> None:
    off = Recipe(model=ModelConfig(activation_checkpointing=False), ppo=PpoConfig(micro_batch_tokens=10**6))
    assert settled_recipe(off, "ppo", shape(), A10).model.activation_checkpointing is False


def test_one_line_says_what_computes() -> None:
    model = settled_recipe(Recipe(), "ppo", shape(), H200, processes=1).model
    told = "bfloat16 (master weights float32), sdpa, activation checkpointing off, cuda:0 NVIDIA H200 140 GiB"
    assert str(Computation(model, H200, 1)) == f"{told}, 1 process"
    assert str(Computation(settled(ModelConfig(), CPU), CPU, 2)) == "float32, sdpa, cpu, 2 threads, 2 processes"


def test_a_stage_says_and_records_it(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = stage("evaluate", TINY, tiny_run, tmp_path / "evaluate")
    line = f"evaluate: float32, sdpa, {hardware()}, 1 process\n"
    assert capsys.readouterr().out.count(line) == 1
    record = json.loads((output / "manifest.json").read_text())["computation"]
    assert record["dtype"] == "float32"
    assert record["device"] == "cpu"
    assert record["threads"] == torch.get_num_threads()


def test_flash_attention_on_a_machine_without_it_ends_before_work(tmp_path: Path) -> None:
    done = rlhf("run", str(TINY), "model.attention=flash_attention_2", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.attention=flash_attention_2: the package flash-attn is not installed")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_float32_is_not_tf32() -> None:
    torch.set_float32_matmul_precision("high")
    use_plain_float32()
    assert torch.get_float32_matmul_precision() == "highest"


def test_frozen_models_keep_their_positions_exact() -> None:
    """Rotary frequencies are a buffer, and rounding them moves every token at long range."""
    frozen = freeze(tiny_policy(), Recipe(model=ModelConfig(dtype="bfloat16")))
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in frozen.buffers()} == {torch.float32}


def test_autocast_keeps_no_copies_of_what_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all weights would stand at once, whole."""
    model = torch.nn.Linear(2, 2)
    for shared in (False, True):
        monkeypatch.setattr(sharding, "is_sharded", lambda module, shared=shared: shared)
        with sharding.autocast(model, True):
            assert torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled() != shared
