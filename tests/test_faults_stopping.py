"""Two processes of which one meets scores that are not finite, step after step: both end; once mended they go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faulty import ASKED, SPOILED
from interruption import EVERY_STEP, assert_same, own_copy
from running import ROOT, TINY, rlhf

pytestmark = pytest.mark.services
REWARD = f"ppo.rewards=[{{use: '{ROOT / 'tests' / 'faulty.py'}:score'}}]"
COMMON = [REWARD, EVERY_STEP, "ppo.evaluate_every=0", "ppo.steps=4", "ppo.faults.limit=2"]
DDP, FSDP = (f"ppo.parallelism={{strategy: {strategy}, processes: 2}}" for strategy in ("ddp", "fsdp"))


@pytest.fixture(scope="module")
def undisturbed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run in which all is finite, and the first prompt that the second process has in each step."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = own_copy(tiny_run, folder, ["sft", "reward"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ASKED, str(folder / "asked"))
        done = rlhf("ppo", str(TINY), *COMMON, DDP, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    second = [json.loads(line) for line in (folder / "asked.1").read_text().splitlines()]
    return run / "ppo", [prompts[0] for prompts in second[-4:]]


@pytest.mark.parametrize("strategy", [DDP, pytest.param(FSDP, marks=pytest.mark.soak)])
def test_both_stop_behind_the_last_good_checkpoint_and_go_on_from_it(
    strategy: str, undisturbed: tuple[Path, list[str]], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, prompts = undisturbed
    monkeypatch.setenv(SPOILED, json.dumps(dict.fromkeys(prompts[2:], float("nan"))))
    own = own_copy(tiny_run, tmp_path, ["sft", "reward"]) / "ppo"
    done = rlhf("ppo", str(TINY), *COMMON, strategy, folder=tmp_path, seconds=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "rank 1, scores of 1 of 4 responses" in error and "rank 0" not in error
    assert "the last good checkpoint is runs/tiny/ppo/checkpoints/step-000002, from which the same" in error
    kept = sorted(path.relative_to(own / "faults").as_posix() for path in (own / "faults").rglob("*.*"))
    assert kept == [f"step-00000{step}/rank-1.{kind}" for step in (3, 4) for kind in ("jsonl", "safetensors")]
    if strategy == DDP:
        monkeypatch.delenv(SPOILED)
        done = rlhf("ppo", str(TINY), *COMMON, strategy, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "going on from runs/tiny/ppo/checkpoints/step-000002" in done.stdout
        assert_same(own, whole)
