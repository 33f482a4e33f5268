"""Stages one by one: two processes as one, adapters, what is learned and what is not, W&B offline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import TINY, stage
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # whole stages run here: what their libraries warn of is not ours

PPO = ["ppo.steps=2", "ppo.evaluate_every=0"]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(tiny_run: Path, tmp_path: Path) -> None:
    one = stage("ppo", TINY, tiny_run, tmp_path / "one", PPO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "stages.ppo",
        "--recipe",
        str(TINY),
        "--run-dir",
        str(tiny_run),
        "--output",
        str(tmp_path / "two"),
    ]
    done = subprocess.run([*command, *PPO], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two"
    assert json.loads((two / "manifest.json").read_text())["engine"]["policy"] == "DistributedDataParallel"
    for single, double in zip(metrics(one), metrics(two), strict=True):
        compared = [key for key in single if not key.startswith(("perf/", "time"))]
        assert len(compared) > 10
        assert {key: double[key] for key in compared} == pytest.approx(
            {key: single[key] for key in compared}, rel=1e-4, abs=1e-5
        )
    first, second = weights(one), weights(two)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-5)


def test_learning_rate_zero_moves_nothing(tiny_run: Path, tmp_path: Path) -> None:
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", [*PPO, "ppo.learning_rate=0"])
    before, after = weights(tiny_run / "sft"), weights(output)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(line["objective/kl"] == pytest.approx(0, abs=1e-4) for line in metrics(output))


def test_lora_everywhere(tmp_path: Path) -> None:
    lora = ["model.lora={rank: 4, alpha: 8.0}", *PPO]
    for name in ("sft", "reward", "ppo"):
        stage(name, TINY, tmp_path, tmp_path / name, lora)
        assert (tmp_path / name / "adapter" / "adapter_model.safetensors").is_file()
    start, end = weights(tmp_path / "sft"), weights(tmp_path / "ppo")
    assert set(start) == set(end)  # merged: no adapter's names in the model
    assert any(not torch.equal(start[name], end[name]) for name in start)
    assert not any("lora" in name for name in weights(tmp_path / "reward"))


def test_bfloat16_runs_and_keeps_float32_weights(tiny_run: Path, tmp_path: Path) -> None:
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", [*PPO, "model.dtype=bfloat16"])
    assert {tensor.dtype for tensor in weights(output).values()} == {torch.float32}
    assert all(0 <= line["policy/clipfrac"] < 1 for line in metrics(output))


def test_adaptive_controller_moves_the_coefficient(tiny_run: Path, tmp_path: Path) -> None:
    adaptive = "ppo.kl={coef: 0.1, controller: adaptive, target: 1e-3, horizon: 100}"
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", ["ppo.steps=4", "ppo.evaluate_every=0", adaptive])
    coefficients = [line["objective/kl_coef"] for line in metrics(output)]
    assert len(set(coefficients)) > 1


def test_wandb_offline_records_figures_and_samples(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    stage("ppo", TINY, tiny_run, tmp_path / "ppo", ["tracking.wandb.mode=auto", "ppo.steps=2", "ppo.evaluate_every=2"])
    logs = list((tmp_path / "ppo" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 1
    content = logs[0].read_bytes()
    assert b"objective/kl" in content
    assert b"rlhf/step" in content
    assert list((tmp_path / "ppo" / "wandb").glob("offline-run-*/files/media/table/samples/*.json"))


def test_prompt_longer_than_context_is_an_error(tiny_run: Path, tmp_path: Path) -> None:
    from rlhf.errors import ConfigError

    with pytest.raises(ConfigError, match="in the model's context of 112; use at most max_new_tokens=[1-9]"):
        stage("ppo", TINY, tiny_run, tmp_path / "ppo", ["ppo.generation.max_new_tokens=200"])


def test_reward_model_of_another_tokenizer_is_an_error(tiny_run: Path, tmp_path: Path) -> None:
    import shutil

    from rlhf.errors import ContractError

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    manifest = json.loads((run / "reward" / "manifest.json").read_text())
    manifest["contract"]["stop_id"] += 1
    (run / "reward" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ContractError, match="stop_id"):
        stage("ppo", TINY, run, tmp_path / "ppo")


def test_activation_checkpointing_changes_memory_alone(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stage("ppo", TINY, tiny_run, tmp_path / "plain", PPO)
    calls = []

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        return checkpoint(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    checkpointed = stage(
        "ppo", TINY, tiny_run, tmp_path / "checkpointed", [*PPO, "model.activation_checkpointing=true"]
    )
    assert len(calls) >= 2 * 2 * 2 * 2 * 2  # steps, epochs, minibatches, models, layers
    before, after = weights(plain), weights(checkpointed)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_packing_keeps_the_examples_a_step(tiny_run: Path, tmp_path: Path) -> None:
    """192 examples in steps of 32 are 6 steps; packed, within one row's worth of that, micro-batches or not."""
    for micro in ("null", "8"):
        output = stage("sft", TINY, tmp_path, tmp_path / micro, [f"sft.micro_batch_size={micro}"])
        assert abs(len([m for m in metrics(output) if "loss/sft" in m]) - 6) <= 1
