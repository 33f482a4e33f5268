"""A reward model whose tokenizer is not the policy's is scored by text, in PPO and in the evaluation, for real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from running import TINY, rlhf, stage

from reward_models.scoring import RewardModel
from rlhf.config import ModelConfig
from rlhf.models import load_reward_model
from rlhf.tokenization import load_tokenization
from rlhf.types import Completion, Prompt

pytestmark = pytest.mark.filterwarnings("ignore")  # whole stages run here: what their libraries warn of is not ours
OTHER = ["model.init.vocab_size=340", "model.init.hidden_size=24"]


@pytest.fixture(scope="module")
def mixed_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT of the tiny run, and a reward model of another vocabulary and size."""
    folder = tmp_path_factory.mktemp("other")
    done = rlhf("run", str(TINY), *OTHER, "--until", "reward", folder=folder)
    assert done.returncode == 0, done.stderr
    run = tmp_path_factory.mktemp("mixed")
    shutil.copytree(tiny_run / "sft", run / "sft")
    shutil.copytree(folder / "runs" / "tiny" / "reward", run / "reward")
    return run


def reward_of(run: Path) -> RewardModel:
    config, results = ModelConfig(), json.loads((run / "reward" / "manifest.json").read_text())["results"]
    tokenization = load_tokenization(run / "reward" / "model", config)
    model = load_reward_model(run / "reward" / "model", tokenization, config).eval()
    return RewardModel(model, tokenization, 4096, results["score_mean"], results["score_deviation"])


def test_scores_are_those_of_the_text_in_its_own_tokens(mixed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = stage("ppo", TINY, mixed_run, mixed_run / "ppo")
    assert "another tokenizer contract (vocabulary differ): it is fed text" in capsys.readouterr().out
    reward = reward_of(mixed_run)
    rows = pyarrow.parquet.read_table(output / "samples" / "held-out-000002.parquet").to_pylist()
    assert rows
    for row in rows[:8]:
        prompt = reward.tokenization.prompt(Prompt.of_user(row["prompt"]))
        tokens = [prompt + reward.tokenization.response(row["response"], finished) for finished in (True, False)]
        possible = reward.score_tokens(tokens).tolist()
        assert min(abs(row["score"] - score) for score in possible) < 1e-4
    stage("evaluate", TINY, mixed_run, mixed_run / "evaluate")
    assert json.loads((mixed_run / "evaluate" / "manifest.json").read_text())["results"]["prompts"] == 16


def test_a_completion_longer_than_its_context_loses_its_beginning(mixed_run: Path) -> None:
    reward = reward_of(mixed_run)
    completion = Completion(Prompt.of_user("word " * 300), "the end", (), (), True)
    tokens = reward.encode(completion)
    assert len(tokens) == 112
    assert tokens[-1] == reward.tokenization.stop_id
    assert torch.isfinite(reward.score_tokens([tokens])).all()


def test_a_policy_of_another_tokenizer_is_refused(mixed_run: Path, tmp_path: Path) -> None:
    from rlhf.errors import ContractError

    shutil.copytree(mixed_run / "sft", tmp_path / "sft")
    shutil.copytree(mixed_run / "reward", tmp_path / "reward")
    shutil.copytree(mixed_run / "reward", tmp_path / "ppo")  # any artifact of the other tokenizer
    with pytest.raises(ContractError, match="the PPO policy uses another tokenizer contract"):
        stage("evaluate", TINY, tmp_path, tmp_path / "evaluate")
