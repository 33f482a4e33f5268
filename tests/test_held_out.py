"""Evaluation while PPO trains: the same prompts at every step, the best policy kept and handed on, the early end."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from interruption import figures, manifest
from peft import PeftModel
from running import TINY, stage
from safetensors.torch import load_file
from saved import saved_weights
from transformers import AutoModelForCausalLM

from data import toy
from data.labelling.sampled import pairs_of_run
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from rlhf.store.artifact import load_artifact
from rlhf.store.checkpoint import Checkpoint, CheckpointStore, Damaged
from stages.context import StageContext
from stages.lineage import lineage_of

pytestmark = pytest.mark.filterwarnings("ignore")  # whole stages run here: what their libraries warn of is not ours

EVERY = ["ppo.steps=4", "ppo.evaluate_every=1", "ppo.held_out.prompts=4", "checkpoint.keep_every=1"]
Script = Callable[..., list[str]]


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """Overrides for a judge that gives the policies after step 0, 1, ... the scores that a test wants."""
    source = "script = []\ndef score(prompts, responses):\n    return [script.pop(0)] * len(responses)\n"
    (tmp_path / "scripted.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))

    def overrides(*scores: float) -> list[str]:
        import scripted  # type: ignore[import-not-found]

        scripted.script[:] = scores
        return [*EVERY, "ppo.held_out.judge=scripted:score"]

    yield overrides
    sys.modules.pop("scripted", None)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


def is_after(model: Path, checkpoint: Path) -> bool:
    """Whether a model has the weights that a checkpoint's policy has."""
    saved = saved_weights(checkpoint / "policy", checkpoint.parent)
    parameters = dict(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    return parameters.keys() == saved.keys() and all(torch.equal(parameters[name], saved[name]) for name in saved)


def test_the_best_by_the_judge_is_kept_and_the_last_handed_on(judged: Script, tiny_run: Path, tmp_path: Path) -> None:
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", judged(0.1, 0.5, 0.9, 0.9, 0.2))
    results = manifest(output)["results"]
    assert (results["judge"], results["best_step"], results["best_score"]) == ("scripted:score", 2, pytest.approx(0.9))
    assert results["last_score"] == pytest.approx(0.2)
    assert results["best_reward"] != results["last_reward"]
    assert (results["steps"], results["stopped_early"]) == (4, False)
    assert is_after(output / "best", output / "checkpoints" / "step-000002")
    assert is_after(output / "model", output / "checkpoints" / "step-000004")
    files = {path.name for path in (output / "model").iterdir()}
    assert {path.name for path in (output / "best").iterdir()} == files
    assert {f"best/{name}" for name in files} < set(load_artifact(output).manifest["checksums"])


def test_the_best_is_handed_on_where_the_recipe_says_so(judged: Script, tiny_run: Path, tmp_path: Path) -> None:
    overrides = [*judged(0.1, 0.9, 0.5, 0.2, 0.2), "ppo.hand_on=best"]
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", overrides)
    assert is_after(output / "model", output / "checkpoints" / "step-000001")
    for path in (output / "model").iterdir():
        assert path.samefile(output / "best" / path.name)  # once on the disk, under two names


def test_what_was_never_bettered_is_the_model_before_training(judged: Script, tiny_run: Path, tmp_path: Path) -> None:
    overrides = [*judged(0.9, 0.5, 0.2, 0.1, 0.0), "checkpoint.keep_every=null"]
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", overrides)
    assert manifest(output)["results"]["best_step"] == 0
    assert equal(output / "best", tiny_run / "sft" / "model")
    assert not equal(output / "model", output / "best")
    # It stands in sft/model, and no checkpoint was written for being better than those before it.
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000004"]


def test_of_adapters_the_best_is_merged_too(judged: Script, tmp_path: Path) -> None:
    lora = ["model.lora={rank: 4, alpha: 8.0}"]
    for name in ("sft", "reward"):
        stage(name, TINY, tmp_path, tmp_path / name, lora)
    last = stage("ppo", TINY, tmp_path, tmp_path / "last", [*lora, *judged(0.1, 0.5, 0.9, 0.2, 0.2)])
    overrides = [*lora, *judged(0.1, 0.5, 0.9, 0.2, 0.2), "ppo.hand_on=best"]
    best = stage("ppo", TINY, tmp_path, tmp_path / "best", overrides)
    assert equal(last / "best", best / "model")
    assert not equal(last / "best", last / "model")
    for output in (last, best):  # the adapter is that of model/
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "model")
        merged = PeftModel.from_pretrained(base, output / "adapter").merge_and_unload().state_dict()
        for name, weight in weights(output / "model").items():
            torch.testing.assert_close(merged[name], weight, rtol=0, atol=1e-7)


def test_patience_ends_the_stage_as_complete(
    judged: Script, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*judged(0.1, 0.5, 0.4, 0.5, 0.9), "ppo.held_out.patience=2", "ppo.steps=50"]
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", overrides)
    results = manifest(output)["results"]
    assert (results["steps"], results["stopped_early"], results["best_step"]) == (3, True, 1)
    assert results["episodes"] == 3 * 8
    assert max(line["step"] for line in figures(output)) == 3
    assert is_after(output / "model", output / "checkpoints" / "step-000003")
    said = [line for line in capsys.readouterr().out.splitlines() if "ended early" in line]
    assert said == ["ppo: ended early after step 3: 2 evaluations without a better held-out score than 0.500 of step 1"]


def test_killed_behind_the_early_end_nothing_is_trained_on(
    judged: Script, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*judged(0.5, 0.4, 0.9, 0.9, 0.9), "ppo.held_out.patience=1"]
    whole = stage("ppo", TINY, tiny_run, tmp_path / "whole", overrides)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageContext, "finish", killed)
        stage("ppo", TINY, tiny_run, tmp_path / "killed", [*judged(0.5, 0.4), "ppo.held_out.patience=1"])
    gc.collect()  # the process that held the directory is gone
    goes_on = [*judged(), "ppo.held_out.patience=1"]  # a judge that has nothing more to say
    output = stage("ppo", TINY, tiny_run, tmp_path / "killed", goes_on)
    assert figures(output) == figures(whole)
    assert manifest(output)["results"] == manifest(whole)["results"]
    assert manifest(output)["checksums"] == manifest(whole)["checksums"]


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_where_the_best_was_lost_the_next_best_is_kept(
    judged: Script,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def verified(store: CheckpointStore, directory: Path) -> Checkpoint:
        if directory.name == "step-000002":
            raise Damaged(f"{directory}/policy/__0_0.distcp: damaged (its checksum differs)")
        return original(store, directory)

    original = CheckpointStore.verified
    monkeypatch.setattr(CheckpointStore, "verified", verified)
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", judged(0.1, 0.5, 0.9, 0.2, 0.2))
    assert manifest(output)["results"]["best_step"] == 1
    assert is_after(output / "best", output / "checkpoints" / "step-000001")
    assert "the best policy, that of step 2, is lost, the next best is kept" in capsys.readouterr().err


def test_nothing_is_kept_where_the_recipe_keeps_nothing(judged: Script, tiny_run: Path, tmp_path: Path) -> None:
    overrides = [*judged(0.1, 0.9, 0.5, 0.2, 0.2), "checkpoint.keep_best=false"]
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", overrides)
    assert not (output / "best").exists()
    assert manifest(output)["results"]["best_step"] == 1  # what the curve says


def test_one_prompt_can_be_followed_through_the_steps(tiny_run: Path) -> None:
    curve = [line for line in figures(tiny_run / "ppo") if "eval/scores" in line]
    assert [line["step"] for line in curve] == [0, 2, 3]
    assert abs(curve[0]["eval/kl"]) < 1e-6 < abs(curve[-1]["eval/kl"])  # curves start at the reference
    seen = []
    for line in curve:
        rows = pyarrow.parquet.read_table(tiny_run / "ppo" / "samples" / f"held-out-{line['step']:06d}.parquet")
        columns = rows.to_pydict()
        seen.append((columns["index"], columns["prompt"]))
        scores = torch.tensor(columns["score"], dtype=torch.float64)
        assert line["eval/scores"] == pytest.approx(scores.mean().item())
        assert line["eval/scores_stderr"] == pytest.approx((scores.std() / len(scores) ** 0.5).item())
        assert line["eval/response_length"] == pytest.approx(sum(columns["tokens"]) / len(scores))
        assert line["eval/finished"] == pytest.approx(sum(columns["finished"]) / len(scores))
    assert seen[0][0] == list(range(64))
    assert seen[0] == seen[1] == seen[2]


def test_what_a_run_has_sampled_can_be_labelled(tiny_run: Path) -> None:
    """Pairs with the very prompts that were answered, not only their texts."""
    for name in ("evaluate", "ppo"):
        pairs = pairs_of_run(tiny_run, name).found.values()
        assert pairs and {pair.prompt for pair in pairs} <= set(toy.prompts())
        assert not all(pair.first_finished and pair.second_finished for pair in pairs)


def test_a_policy_that_does_not_move_answers_the_same(tiny_run: Path, tmp_path: Path) -> None:
    overrides = ["ppo.steps=2", "ppo.evaluate_every=1", "ppo.learning_rate=0"]
    output = stage("ppo", TINY, tiny_run, tmp_path / "ppo", overrides)
    tables = [pyarrow.parquet.read_table(path).drop(["step"]) for path in sorted((output / "samples").glob("*"))]
    assert len(tables) == 3
    assert tables[0] == tables[1] == tables[2]


def test_the_best_is_never_worse_than_the_last(tiny_run: Path, tiny_run_of_two: Path) -> None:
    for run in (tiny_run, tiny_run_of_two):
        results = manifest(run / "ppo")["results"]
        scores = {line["step"]: line["eval/scores"] for line in figures(run / "ppo") if "eval/scores" in line}
        assert results["best_score"] == max(scores.values()) >= results["last_score"] == scores[3]
        files = [run / "ppo" / name / "model.safetensors" for name in ("best", "model")]
        assert files[0].samefile(files[1]) == (results["best_step"] == 3)
        summary = json.loads((run / "summary.json").read_text())["ppo"]
        assert (summary["best_step"], summary["best_score"]) == (results["best_step"], results["best_score"])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["ppo.hand_on=best", "ppo.evaluate_every=0"], "ppo.hand_on=best with evaluate_every=0: no policy is known"),
        (["ppo.hand_on=best", "checkpoint.keep_best=false"], "ppo.hand_on=best with checkpoint.keep_best=false"),
        (["ppo.held_out.patience=3", "ppo.evaluate_every=0"], "ppo.evaluate_every=0 with held_out.patience=3"),
        (["ppo.held_out.judge=m:f", "ppo.evaluate_every=0"], "ppo.evaluate_every=0 with held_out.judge=m:f"),
    ],
)
def test_settings_that_do_not_fit_together_are_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(TINY, overrides)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{TINY}: {line}")
    assert "; use " in problem


def test_who_judges_and_how_often_is_part_of_a_result(
    judged: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint(*overrides: str) -> str:
        return lineage_of(load_recipe(TINY, overrides), "ppo", tmp_path).fingerprint

    judge = judged()[-1]
    found = {fingerprint(), fingerprint(judge), fingerprint("ppo.evaluate_every=1"), fingerprint("ppo.hand_on=best")}
    assert len(found) == 4
    before = fingerprint(judge)
    (tmp_path / "scripted.py").write_text((tmp_path / "scripted.py").read_text() + "# another\n")
    assert fingerprint(judge) != before
