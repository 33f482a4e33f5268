"""The PPO stage where something is not finite: what it skips, keeps, says, counts, and where it goes on from."""

from __future__ import annotations

import gc
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import manifest
from running import TINY, stage
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rlhf.errors import FaultError, RewardError
from rlhf.recipe import load_recipe
from rlhf.store.checkpoint import Checkpoint, CheckpointStore, Retention
from stages.checkpoints import Checkpoints
from stages.signals import Stopped
from tests import faulty
from tests.untrained import train, write_run

pytestmark = pytest.mark.filterwarnings("ignore")  # whole stages run here: what their libraries warn of is not ours

STEPS = 5
COMMON = [
    f"ppo.steps={STEPS}",
    "ppo.rewards=[{use: 'tests.faulty:score'}]",
    "ppo.prompts_per_step=4",
    "ppo.generation.max_new_tokens=6",
    "ppo.evaluate_every=0",
    "checkpoint.every_steps=1",
    "checkpoint.keep_every=1",
]
STATEFUL = ["ppo.normalize_scores=running", "ppo.kl.controller=adaptive", "ppo.kl.target=0.01", "ppo.kl.horizon=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="module")
def undisturbed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]], Any]:
    """A run in which all is finite: its directory, each step's prompts, its figures."""
    output = tmp_path_factory.mktemp("undisturbed") / "ppo"
    faulty.asked.clear()
    lines = train(run, output, [*COMMON, *STATEFUL])
    return output, list(faulty.asked), lines


@pytest.fixture(autouse=True)
def mended() -> Iterator[None]:
    yield
    faulty.spoiled.clear()
    gc.collect()  # the execution that held a directory is gone


def spoil(prompts: list[list[str]], *steps: int, bad: float = math.nan) -> None:
    """Steps, counted from 1, in which a score is not finite."""
    faulty.spoiled.update({prompts[step - 1][0]: bad for step in steps})


def checkpoint(output: Path, step: int, scratch: Path) -> dict[str, Any]:
    """All that a checkpoint holds."""
    directory = output / "checkpoints" / f"step-{step:06d}"
    held: dict[str, Any] = {"ppo.json": json.loads((directory / "ppo.json").read_text())}
    for role in ("policy", "value"):
        dcp_to_torch_save(directory / role, scratch / "whole.pt")
        held[role] = torch.load(scratch / "whole.pt", weights_only=True)
    return held


def flat(state: Any) -> list[torch.Tensor]:
    return [state] if isinstance(state, torch.Tensor) else [leaf for each in state.values() for leaf in flat(each)]


def test_a_faulty_step_changes_nothing_but_the_schedule_and_the_count(
    run: Path, undisturbed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, prompts, whole = undisturbed
    spoil(prompts, 3)
    output = tmp_path / "ppo"
    with pytest.raises(Stopped):  # which writes a checkpoint whatever the step was
        stage("ppo", TINY, run, output, [*COMMON, *STATEFUL], stop_after=3)
    before, after = (checkpoint(output, step, tmp_path) for step in (2, 3))
    for role in ("policy", "value"):
        for part in ("weights", "optimizer"):
            pairs = zip(flat(before[role][part]), flat(after[role][part]), strict=True)
            assert all(torch.equal(old, new) for old, new in pairs)
        assert int(after[role]["steps"]) - int(before[role]["steps"]) == 4
    old, new = before["ppo.json"], after["ppo.json"]
    assert (old["kl"], old["running"]) == (new["kl"], new["running"])
    assert new["breaker"] == {"total": 1, "in_a_row": 1} and old["breaker"] == {"total": 0, "in_a_row": 0}
    assert new["figures"]["objective/scores"] == old["figures"]["objective/scores"]  # the last that is finite
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["objective/kl"] for line in lines] == [line["objective/kl"] for line in whole[:3]]
    assert lines[2]["objective/scores"] is None and lines[2]["policy/skipped_steps"] == 4
    assert lines[2]["safety/skipped_steps"] == lines[2]["safety/faults_in_a_row"] == 1
    assert "safety/skipped_steps" not in lines[1]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    kept = output / "faults" / "step-000003"
    assert line == (
        "ppo: warning: step 3 is skipped, for something is not finite: rank 0, scores of 1 of 4 responses, "
        f"scores_1-score of 1 of 4 responses (kept in {kept / 'rank-0.safetensors'})"
    )
    tensors = load_file(kept / "rank-0.safetensors")
    assert {"tokens", "attention_mask", "mask", "old_logprobs", "ref_logprobs", "values"} < set(tensors)
    assert tensors["scores"].isnan().tolist() == [True] + [False] * 3
    rows = [json.loads(row) for row in (kept / "rank-0.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts[2] and rows[0]["score"] == "nan"
    assert [row["not_finite"] for row in rows] == [{"scores": True, "scores_1-score": True}, *({},) * 3]


def test_stopped_between_two_faults_and_resumed_is_bit_for_bit(run: Path, undisturbed: Any, tmp_path: Path) -> None:
    _, prompts, _ = undisturbed
    spoil(prompts, 2, 3, 5, bad=math.inf)
    whole = train(run, tmp_path / "whole", [*COMMON, *STATEFUL])
    assert [line.get("safety/faults_in_a_row") for line in whole] == [None, 1, 2, 0, 1]
    with pytest.raises(Stopped):
        stage("ppo", TINY, run, tmp_path / "stopped", [*COMMON, *STATEFUL], stop_after=2)
    gc.collect()
    assert train(run, tmp_path / "stopped", [*COMMON, *STATEFUL]) == whole
    ours, theirs = (manifest(tmp_path / name) for name in ("stopped", "whole"))
    assert ours["checksums"] == theirs["checksums"] and ours["results"] == theirs["results"]
    steps = [path.name for path in sorted((tmp_path / "whole" / "checkpoints").iterdir())]
    assert steps == ["step-000001", "step-000004"]  # none while faults are in a row, nor behind the last step


def test_after_too_many_in_a_row_it_stops_and_once_mended_ends_as_if_nothing_had_been(
    run: Path, undisturbed: Any, tmp_path: Path
) -> None:
    """Also where it was stopped among the faults: it goes on from before them."""
    whole, prompts, lines = undisturbed
    spoil(prompts, 3, 4, 5)
    output = tmp_path / "ppo"
    with pytest.raises(Stopped):
        stage("ppo", TINY, run, output, [*COMMON, *STATEFUL], stop_after=4)
    gc.collect()
    assert (output / "checkpoints" / "step-000004").is_dir()
    with pytest.raises(FaultError) as raised:
        train(run, output, [*COMMON, *STATEFUL])
    (problem,) = raised.value.problems
    assert problem.startswith("ppo.faults.limit=3: step 5 was the last of so many in a row in which something was not ")
    assert f"rank 0, scores of 1 of 4 responses, scores_1-score of 1 of 4 responses (kept in {output}" in problem
    assert problem.endswith(
        f"; the last good checkpoint is {output / 'checkpoints' / 'step-000002'}, from which the same command goes on; "
        "mend the reward"
    )
    assert [path.name for path in sorted((output / "faults").iterdir())] == [f"step-00000{n}" for n in (3, 4, 5)]
    del raised
    gc.collect()
    faulty.spoiled.clear()
    assert train(run, output, [*COMMON, *STATEFUL]) == lines
    assert manifest(output)["checksums"] == manifest(whole)["checksums"]
    assert manifest(output)["results"] == manifest(whole)["results"]


def test_stopped_before_any_checkpoint_what_was_made_stands(run: Path, undisturbed: Any, tmp_path: Path) -> None:
    spoil(undisturbed[1], 1, 2)
    output = tmp_path / "ppo"
    overrides = [*COMMON, *STATEFUL, "ppo.faults.limit=2", "ppo.faults.keep=1"]
    with pytest.raises(FaultError, match="there is no good checkpoint yet, and the same command starts again; mend"):
        train(run, output, overrides)
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in (output / "faults").iterdir()] == ["step-000002"]  # the newest, as many as are kept
    gc.collect()
    faulty.spoiled.clear()
    assert train(run, output, overrides) == undisturbed[2]


def test_without_a_limit_it_goes_on_to_the_end(run: Path, undisturbed: Any, tmp_path: Path) -> None:
    spoil(undisturbed[1], 1, 2, 3, 4, 5)
    output = tmp_path / "ppo"
    overrides = [*COMMON, "ppo.faults={limit: null, keep: 0}"]
    lines = train(run, output, overrides)
    assert [line["safety/skipped_steps"] for line in lines] == [1, 2, 3, 4, 5]
    assert not (output / "faults").exists()
    assert manifest(output)["results"]["scores"] is None


def test_a_disk_that_cannot_keep_the_batch_ends_nothing(
    run: Path, undisturbed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(undisturbed[1], 2)
    output = tmp_path / "ppo"
    overrides = [*COMMON, *STATEFUL]
    with pytest.raises(Stopped):
        stage("ppo", TINY, run, output, overrides, stop_after=1)
    gc.collect()
    (output / "faults").write_text("a file where a directory should be")
    lines = train(run, output, overrides)
    assert len(lines) == STEPS and lines[1]["safety/faults_in_a_row"] == 1
    assert "(not kept: [Errno 20] Not a directory" in capsys.readouterr().err


def test_a_learning_rate_that_breaks_the_weights_leaves_no_checkpoint_of_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one update a step each step's own figures are finite, and what it leaves is not."""
    huge = [*COMMON, "ppo.epochs=1", "ppo.minibatches=1", "ppo.learning_rate=1e18"]
    output = tmp_path / "ppo"
    with pytest.raises(FaultError, match="there is no good checkpoint yet.*a lower ppo.learning_rate is the usual"):
        train(run, output, huge)
    assert "no checkpoint of step 1 (the policy gives what is not finite)" in capsys.readouterr().err
    assert not list((output / "checkpoints").glob("*"))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("safety/faults_in_a_row") for line in lines] == [None, 1, 2, 3]
    gc.collect()
    with pytest.raises(FaultError, match="the policy after step 1 gives what is not finite"):  # it is not handed on
        train(run, tmp_path / "one", [*huge, "ppo.steps=1"])
    assert not (tmp_path / "one" / "manifest.json").exists()


def test_before_the_first_step_a_score_that_is_not_finite_is_refused(run: Path, tmp_path: Path) -> None:
    """Where something is evaluated then."""
    overrides = [*COMMON, "ppo.evaluate_every=1", "ppo.held_out.prompts=2"]
    faulty.asked.clear()
    with pytest.raises(Stopped):
        stage("ppo", TINY, run, tmp_path / "sound", overrides, stop_after=1)
    gc.collect()
    faulty.spoiled[faulty.asked[0][1]] = math.inf
    with pytest.raises(
        RewardError, match="^the reward gave inf for the response .* before the first step; every score"
    ):
        train(run, tmp_path / "ppo", overrides)


class Asked:
    """What `Checkpoints.demand` reads of a context."""

    def __init__(self, folder: Path) -> None:
        from stages.signals import Signals

        self.recipe = load_recipe(TINY, ["checkpoint.every_steps=1"])
        self.store = CheckpointStore(folder, "own", Retention(2))
        self.checkpoint, self.stop_after, self.signals = None, None, Signals()


def test_among_faults_only_the_end_or_a_better_policy_is_written_and_sigusr1_waits(tmp_path: Path) -> None:
    context = Asked(tmp_path)
    checkpoints = Checkpoints(context)  # type: ignore[arg-type]
    assert checkpoints.demand(1) == 1
    checkpoints.faults_in_a_row = 1
    context.signals.checkpoint = True
    assert checkpoints.demand(2) == checkpoints.demand(2, last=True) == 0
    assert checkpoints.demand(2, score=0.5) == 1
    assert context.signals.checkpoint
    checkpoints.faults_in_a_row = 0
    assert checkpoints.demand(3) == 1 and not context.signals.checkpoint
    checkpoints.faults_in_a_row = 2
    context.signals.stop = signal.SIGTERM
    assert checkpoints.demand(4) == 2


def written(store: CheckpointStore, step: int, **meta: Any) -> Checkpoint:
    (store.begin(step) / "ppo.json").write_text("{}")
    return store.commit(step, {"score": None, **meta})


def test_the_newest_good_checkpoint_outlives_those_from_among_faults(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", "own", Retention(2))
    written(store, 1)
    written(store, 2)
    for step in (3, 4, 5):
        written(store, step, faults_in_a_row=step - 2)
    names = [path.name for path in sorted(store.directory.iterdir())]
    assert names == ["step-000002", "step-000004", "step-000005"]
    good = store.newest_good(print)
    assert good and good.step == 2
    names = [path.name for path in sorted(store.directory.iterdir())]
    assert names == ["step-000002", "step-000004.faulty", "step-000005.faulty"]
    newest = store.newest(print)
    assert newest and newest.step == 2
    store.finish()
    assert not store.directory.exists()
