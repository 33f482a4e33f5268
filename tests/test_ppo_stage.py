"""The stage itself, whole, from models that nobody trained: what its parts' tests cannot see."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import manifest
from running import TINY, stage
from safetensors.torch import load_file
from saved import saved_weights
from torch import nn

from rlhf.adapters import AdapterOff
from rlhf.ppo.experience import Actors
from stages import ppo
from stages.cast import Cast
from stages.signals import Stopped
from tests.untrained import script, train, write_run

pytestmark = pytest.mark.filterwarnings("ignore")  # whole stages run here: what their libraries warn of is not ours


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("untrained"))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(20, 40)[None]).logits
    return found


@pytest.mark.parametrize("overrides", [[], ["model.lora.rank=4"]], ids=["full", "lora"])
def test_the_reference_stays_what_it_was(
    overrides: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def prepare(context: Any) -> Cast:
        seen["cast"] = cast = original(context)
        seen["before"] = logits(cast.actors.reference)
        return cast

    def find_best(*arguments: Any) -> None:
        """Behind the last step, before adapters are merged."""
        actors: Actors = seen["cast"].actors
        seen["after"], seen["policy"] = logits(actors.reference), logits(actors.policy)

    original = ppo.prepare
    monkeypatch.setattr(ppo, "prepare", prepare)
    monkeypatch.setattr(ppo, "find_best", find_best)
    stage("ppo", TINY, run, tmp_path / "ppo", ["ppo.steps=1", "ppo.evaluate_every=0", *overrides])
    assert isinstance(seen["cast"].actors.reference, AdapterOff) == bool(overrides)
    torch.testing.assert_close(seen["after"], seen["before"], rtol=0, atol=1e-6)
    assert float((seen["policy"] - seen["before"]).abs().max()) > 1e-2


def test_the_kl_coefficient_follows_the_kl(run: Path, tmp_path: Path) -> None:
    controlled = ["ppo.kl.controller=adaptive", "ppo.kl.target=0.01", "ppo.kl.horizon=8", "ppo.evaluate_every=0"]
    lines = train(run, tmp_path / "ppo", controlled)
    coefficients = [line["objective/kl_coef"] for line in lines]
    factors = [1 + min(max(line["objective/kl"] / 0.01 - 1, -0.2), 0.2) for line in lines]
    assert coefficients[1:] == pytest.approx([c * f for c, f in zip(coefficients, factors[:-1], strict=False)])
    assert len(set(coefficients)) == 3


def test_with_a_head_on_the_trunk_the_best_policy_comes_back_from_its_checkpoint(run: Path, tmp_path: Path) -> None:
    """Its checkpoint holds the head too, which is no part of what is handed on."""
    script[:] = [0.0, 1.0, 0.5]
    overrides = ["ppo.value_start=trunk", "ppo.evaluate_every=1", "ppo.steps=2", "checkpoint.keep_every=1"]
    train(run, tmp_path / "ppo", [*overrides, "ppo.held_out.judge=tests.untrained:scripted"])
    best, last = (load_file(tmp_path / "ppo" / name / "model.safetensors") for name in ("best", "model"))
    checkpoint = tmp_path / "ppo" / "checkpoints" / "step-000001" / "policy"
    learned = saved_weights(checkpoint, tmp_path).values()
    assert len(learned) == len(best) + 2 and set(best) == set(last)  # weight and bias of the head
    assert all(any(torch.equal(weight, each) for each in learned) for weight in best.values())
    assert any(not torch.equal(best[name], last[name]) for name in best)


def test_where_no_value_model_takes_part_none_warms_up(run: Path, tmp_path: Path) -> None:
    """Its settings may stand in a recipe, so that one override compares estimators."""
    once = ["ppo.steps=1", "ppo.evaluate_every=0", "ppo.advantage=reinforce++"]
    alone, beside = (train(run, tmp_path / str(n), [*once, f"ppo.value_warmup_steps={n}"]) for n in (0, 2))
    assert alone == beside


def test_graphs_that_a_cpu_has_not_change_nothing_and_a_line_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = ["ppo.steps=1", "ppo.evaluate_every=0"]
    plain, asked = (train(run, tmp_path / on, [*once, f"ppo.generation.cuda_graphs={on}"]) for on in ("false", "true"))
    assert asked == plain
    told = [line for line in capsys.readouterr().out.splitlines() if "cuda_graphs" in line]
    assert told == ["ppo: ppo.generation.cuda_graphs does nothing here: there is no CUDA device"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["ppo.value_start=trunk", "ppo.kl.controller=adaptive", "ppo.kl.target=0.1", "ppo.kl.horizon=20"],
        ["ppo.advantage=rloo", "ppo.responses_per_prompt=2"],
        ["ppo.advantage=grpo", "ppo.responses_per_prompt=2", "model.lora.rank=4"],
    ],
    ids=["trunk", "rloo", "grpo with adapters"],
)
def test_stopped_and_resumed_is_bit_for_bit(overrides: list[str], run: Path, tmp_path: Path) -> None:
    """With scores normalised by all so far, which must be remembered."""
    running = [*overrides, "ppo.normalize_scores=running", "ppo.score_clip=2.0", "ppo.evaluate_every=2"]
    whole = train(run, tmp_path / "whole", running)
    with pytest.raises(Stopped):
        stage("ppo", TINY, run, tmp_path / "stopped", running, stop_after=2)
    gc.collect()  # the execution that held the directory is gone
    assert train(run, tmp_path / "stopped", running) == whole
    assert manifest(tmp_path / "stopped")["checksums"] == manifest(tmp_path / "whole")["checksums"]
