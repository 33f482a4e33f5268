"""Learning that is broken on purpose must be seen to break: swapped votes, no KL penalty."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from running import ROOT, stage

from data import toy
from data.splits import is_test, split_prompts
from rlhf.types import Comparison

LEARNING = ROOT / "tests" / "recipes" / "learning.yaml"
pytestmark = pytest.mark.filterwarnings("ignore")  # whole stages run here: what their libraries warn of is not ours


@pytest.fixture(scope="module")
def learning_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("learning")
    for name in ("sft", "reward"):
        stage(name, LEARNING, run, run / name)
    return run


def accuracy(directory: Path) -> float:
    return float(json.loads((directory / "manifest.json").read_text())["results"]["accuracy"])


def last_figures(directory: Path) -> dict[str, float]:
    figures: dict[str, float] = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    return figures


def write_votes(path: Path, records: list[Comparison]) -> None:
    with path.open("w") as file:
        for record in records:
            prompt = [{"role": "user", "content": record.prompt.text}]
            fields = {"prompt": prompt, "chosen": record.chosen, "rejected": record.rejected, "tie": record.tie}
            file.write(json.dumps(fields) + "\n")


def test_swapped_votes_push_accuracy_below_half(learning_run: Path, tmp_path: Path) -> None:
    prompts = split_prompts(toy.prompts(), 0.1)
    records = toy.comparisons(4000, 0, prompts.train).records + toy.comparisons(1000, 0, prompts.test).records
    swapped = [r if is_test(r.prompt, 0.1) else replace(r, chosen=r.rejected, rejected=r.chosen) for r in records]
    write_votes(tmp_path / "swapped.jsonl", swapped)
    overrides = [f"data.directory={tmp_path}", "data.comparisons=[{path: swapped.jsonl}]"]
    broken = stage("reward", LEARNING, learning_run, tmp_path / "reward", overrides)
    assert accuracy(learning_run / "reward") > 0.57
    assert accuracy(broken) < 0.43


def test_without_penalty_the_kl_grows(learning_run: Path, tmp_path: Path) -> None:
    free = stage("ppo", LEARNING, learning_run, tmp_path / "free", ["ppo.kl.coef=0"])
    held = stage("ppo", LEARNING, learning_run, tmp_path / "held", ["ppo.kl.coef=1.0"])
    first = json.loads((free / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["objective/kl"]) < 0.05  # the policy starts as the reference
    assert last_figures(free)["objective/kl"] > 3 * max(last_figures(held)["objective/kl"], 0.1)
    assert last_figures(free)["objective/scores"] > first["objective/scores"] + 0.3
