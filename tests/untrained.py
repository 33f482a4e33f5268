"""A run whose SFT and reward stages nobody trained: random weights behind real artifacts, for PPO to start from.

Made in a second and the same on every machine, where a chain of trained stages takes half a minute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from running import TINY, stage

from rlhf.config import InitConfig, ModelConfig
from rlhf.models import load_reward_model, new_policy, save_model
from rlhf.store.artifact import PARTIAL, Lineage, publish
from rlhf.tokenization import train_tokenization
from tests.test_models import widen

INIT = InitConfig(hidden_size=32, layers=2, heads=2, vocab_size=400, context=112)
TEXTS = ["Q: Which of the two is heavier, a cat or a dog, and why?", "A: The dog, because it is larger than the cat."]


def write_run(folder: Path) -> Path:
    """runs/untrained with sft/ and reward/."""
    run, tokenization = folder / "runs" / "untrained", train_tokenization(TEXTS * 9, INIT.vocab_size, INIT.context)
    policy = new_policy(INIT, tokenization, ModelConfig())
    widen(policy, seed=7)
    with torch.no_grad():  # responses of all lengths: in some states the stop token is likely
        policy.get_output_embeddings().weight[tokenization.stop_id] *= 4.0  # type: ignore[operator]
    save_model(policy, tokenization, run / "sft" / PARTIAL / "model")
    torch.manual_seed(0)
    reward = load_reward_model(run / "sft" / PARTIAL / "model", tokenization, ModelConfig())
    widen(reward, seed=9)
    save_model(reward, tokenization, run / "reward" / PARTIAL / "model")
    results = {"sft": {}, "reward": {"score_mean": 0.2, "score_deviation": 1.5}}
    for name, figures in results.items():
        record = {"contract": tokenization.contract, "results": figures, "engine": {}}
        publish(run / name, Lineage(name, {"untrained": True}, {}, {}), record)
    return run


def train(run: Path, output: Path, overrides: Sequence[str] = ()) -> list[dict[str, float]]:
    """PPO from such a run in this process, by the stage itself; its figures by step, clocks apart."""
    stage("ppo", TINY, run, output, overrides)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in lines]


script: list[float] = []  # what `scripted` is to say, evaluation by evaluation


def scripted(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A judge that says what a test wants."""
    return [script.pop(0)] * len(responses)
