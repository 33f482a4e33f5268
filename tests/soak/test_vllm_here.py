"""vLLM in the training process, for real: `make soak ARGS="-k vllm_here -s"`.

The environment of `tests/vllm_environment.py`, with what we depend on beside vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from interruption import figures
from running import ROOT, rlhf
from transformers import AutoModelForCausalLM, LlamaConfig
from vllm_environment import vllm_python

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200), pytest.mark.filterwarnings("ignore")]
LEARNING = str(ROOT / "tests" / "recipes" / "learning.yaml")
WIDER = ["model.init.heads=2", "ppo.steps=4"]  # vLLM's kernels for CPUs begin at heads of size 32
HERE = 'ppo.generation={"engine": "vllm", "weights": "replica", "max_new_tokens": 36, "batch_size": 32}'


def by_vllm(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run by the interpreter of vLLM's environment."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [vllm_python(with_ours=True), *arguments], cwd=folder, env=own, capture_output=True, text=True, timeout=6000
    )


@pytest.mark.parametrize("tied", [True, False])
def test_after_an_update_vllm_is_the_policy(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=300,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,  # so that it matters what the weights are
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    prompts = [[5 + i, 7, 9, 11 + i][: 2 + i % 3] for i in range(20)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    script = str(ROOT / "tests" / "soak" / "vllm_here.py")
    done = by_vllm(script, "model", "prompts.json", "answer.json", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    print(f"tied {tied}: log-probs apart by {[turn['apart'] for turn in answer['turns']]}")
    assert answer["same"] == [True] * 4
    for turn in answer["turns"]:
        assert turn["apart"] < 1e-4 and turn["again"] and turn["told"] == list(range(20))
    first, second, third = (turn["responses"] for turn in answer["turns"])
    assert first != second != third


def test_ppo_samples_from_the_policy_that_it_trains(tmp_path: Path) -> None:
    for stage in ("sft", "reward"):
        done = rlhf(stage, LEARNING, *WIDER, folder=tmp_path, seconds=900)
        assert done.returncode == 0, done.stdout + done.stderr
    done = by_vllm("-P", "-m", "launch.cli", "ppo", LEARNING, *WIDER, HERE, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = figures(tmp_path / "runs" / "learning" / "ppo")
    mismatch = [abs(row["policy/mismatch_kl"]) for row in rows]
    print(f"|mismatch| at most {max(mismatch):.1e}, scores", [row["objective/scores"] for row in rows])
    assert len(rows) == 4 and max(mismatch) < 1e-5
    assert max(abs(row["objective/kl"]) for row in rows) > 1e-4  # the policy has moved, and vLLM's with it
