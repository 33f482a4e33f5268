"""Training that goes on: from an earlier reward model, with a share of old votes; and accuracy of each part."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from running import ROOT, TINY, stage
from safetensors.torch import load_file
from test_models import tiny_policy, tiny_tokenization
from typer.testing import CliRunner

from data import mapped, sources
from data.formats import as_record, write_jsonl
from data.formats_preferences import parse_preference
from data.mapped import Selection
from data.mixtures import replayed
from launch.cli import app
from reward_models.judging import held_out_of
from rlhf.config import DataConfig, RewardConfig, SourceConfig
from rlhf.errors import ArtifactError, ConfigError, ContractError
from rlhf.models import load_reward_model, save_model
from rlhf.recipe import load_recipe
from rlhf.tokenization import load_tokenization, train_tokenization
from rlhf.types import Comparison, Prompt
from stages import preflight
from stages.lineage import lineage_of
from stages.reward import earlier_model, parts_of
from stages.uses import check_uses

VOTE = Comparison(Prompt("p"), "a", "b")


def test_old_votes_are_the_share_of_all_that_was_asked_for(tmp_path: Path) -> None:
    for name, count in (("old", 400), ("older", 40), ("new", 90)):
        write_jsonl(tmp_path / f"{name}.jsonl", [replace(VOTE, prompt=Prompt(f"{name} {i}")) for i in range(count)])
    wanted = [
        SourceConfig(path="old.jsonl", replay=0.25),
        SourceConfig(path="older.jsonl", replay=0.5),
        SourceConfig(path="new.jsonl"),
    ]
    plain = [source.model_copy(update={"replay": None}) for source in wanted]
    drawn, all_of_them = (
        sources.comparisons(DataConfig(directory=str(tmp_path), comparisons=each), 1)[0] for each in (wanted, plain)
    )
    counts = Counter(vote.prompt.text.split()[0] for vote in drawn.train)
    new = sum(vote.prompt.text.startswith("new") for vote in all_of_them.train)
    assert counts == {"new": new, "old": new, "older": 2 * new}
    olds = Counter(vote.prompt.text for vote in drawn.train if vote.prompt.text.startswith("old "))
    assert set(olds.values()) == {1}  # there are enough; of the older ones every one stands several times
    assert list(drawn.test) == list(all_of_them.test)
    again, _ = sources.comparisons(DataConfig(directory=str(tmp_path), comparisons=wanted), 2)
    assert {vote.prompt.text for vote in again.train} != {vote.prompt.text for vote in drawn.train}


def test_nothing_is_drawn_where_there_is_nothing() -> None:
    found = replayed([np.arange(0), np.arange(6)], [0.5, None], 0)
    assert [len(own) for own in found] == [0, 6]
    assert [len(own) for own in replayed([np.arange(9), np.arange(0)], [0.5, None], 0)] == [0, 0]


@pytest.mark.parametrize(
    ("comparisons", "problem"),
    [
        ([{"path": "a", "replay": 0.5}], "comparisons: replay of every source"),
        ([{"path": "a", "replay": 0.5}, {"path": "b", "replay": 0.6}, {"path": "c"}], "sum to 1.1"),
        ([{"path": "a", "replay": 0.5, "weight": 2.0}, {"path": "b"}], "weight=2 and replay=0.5 cannot both"),
        ([{"path": "a", "replay": 1.0}, {"path": "b"}], "less than 1"),
    ],
)
def test_shares_that_cannot_be_are_told(comparisons: list[dict[str, object]], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DataConfig.model_validate({"comparisons": comparisons})


def test_what_is_trained_is_not_used_as_it_is() -> None:
    with pytest.raises(ValidationError, match="start=a with use=b: what is used is not trained"):
        RewardConfig(start="a", use="b")


def test_a_source_without_replay_keeps_its_fingerprint() -> None:
    assert "replay" not in SourceConfig(path="a").fingerprint_fields()
    assert SourceConfig(path="a", replay=0.5).fingerprint_fields()["replay"] == 0.5


def test_a_kind_goes_from_a_record_to_the_held_out_figures(tmp_path: Path) -> None:
    kinds = ["sum", None, "home", "sum", "sum"]
    votes = [replace(VOTE, prompt=Prompt(f"{i}"), kind=kind, tie=i == 4) for i, kind in enumerate(kinds)]
    votes[1] = replace(votes[1], time=1.0)
    assert [parse_preference(as_record(vote)) for vote in votes] == [[vote] for vote in votes]
    mapped.write_examples(tmp_path / "rows.arrow", [(vote, vote.prompt.text) for vote in votes], list)
    assert list(mapped.MappedExamples(tmp_path / "rows.arrow", "comparisons")) == votes
    assert parse_preference({**as_record(VOTE), "kind": 3})[0].kind == "3"
    for other in (1.5, True, ["sum"], {"of": "sum"}):  # means something else, and spoils no vote
        assert parse_preference({**as_record(VOTE), "kind": other}) == [VOTE]
    test = Selection([votes[:2], votes[2:]], np.array([4, 0, 1, 2, 3]))
    judged = Selection([test], np.arange(5))
    parts = parts_of(judged, test, DataConfig(comparisons=[SourceConfig(path="a"), SourceConfig(path="b")]))
    assert parts == {
        "accuracy_by_kind": ["sum", "sum", None, "home", "sum"],
        "accuracy_by_source": ["b", "a", "a", "b", "b"],
    }
    scores = torch.tensor([0.0, 1, 1, 1, 0, 0, 0, 0, 0, 1])
    held_out = held_out_of(scores, [vote.wanted for vote in judged])
    by_kind = held_out.by(parts["accuracy_by_kind"])
    assert {kind: (share["accuracy"], share["votes"]) for kind, share in by_kind.items()} == {
        "sum": (0.5, 2),
        "home": (1.0, 1),
    }
    by_source = held_out.by(parts["accuracy_by_source"])
    assert sum(share["votes"] for share in by_source.values()) == held_out.votes == 4
    alone = parts_of(Selection([votes[1:2]], np.arange(1)), votes[1:2], DataConfig())
    assert alone == {}


def test_training_begins_from_the_reward_model_of_a_run(tiny_run: Path, tmp_path: Path) -> None:
    """Without a step that moves anything, it hands on what it began from; a fresh head is another."""
    still = [
        "reward.learning_rate=0",
        f"reward.start={tiny_run}",
        "data.comparisons=[{path: toy, count: 32, held_out: 16}]",
    ]
    output = stage("reward", TINY, tiny_run, tmp_path / "reward", still)
    before, after = (load_file(place / "model" / "model.safetensors") for place in (tiny_run / "reward", output))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    manifest = json.loads((output / "manifest.json").read_text())
    fresh = lineage_of(load_recipe(TINY, [still[0], still[2]]), "reward", tiny_run)
    assert manifest["fingerprint"] != fresh.fingerprint and "start" in manifest["data"]


def test_another_tokenizer_is_refused_before_training(tmp_path: Path) -> None:
    own, other = tiny_tokenization(), train_tokenization(["other words"] * 9, 280, 64)
    save_model(tiny_policy(), own, tmp_path / "policy")
    recipe = load_recipe(TINY, [f"reward.start={tmp_path / 'earlier'}"])
    save_model(load_reward_model(tmp_path / "policy", own, recipe.model), own, tmp_path / "earlier")
    said: list[str] = []
    context: Any = SimpleNamespace(recipe=recipe, say=said.append)
    assert (
        earlier_model(context, load_tokenization(tmp_path / "policy", recipe.model)) == tmp_path / "earlier"
        and "goes on from" in said[0]
    )
    with pytest.raises(ContractError, match=r"reward.start=.*earlier uses another tokenizer contract"):
        earlier_model(context, other)


def test_what_cannot_be_a_start_is_told_at_once(tiny_run: Path) -> None:
    for name, kind, problem in (
        ("http://127.0.0.1:1/score", ConfigError, "is a server, which cannot be trained; give a run or a reward model"),
        ("runs/none", ConfigError, "reward.start=runs/none: no such directory"),
        (f"{tiny_run / 'sft' / 'model'}", ArtifactError, "no head that gives one score"),
    ):
        with pytest.raises((ConfigError, ArtifactError), match=problem) as caught:
            check_uses(load_recipe(TINY, [f"reward.start={name}"]), ["reward"])
        assert issubclass(caught.type, (kind, ConfigError))


def test_a_run_does_not_begin_from_itself(tiny_run: Path, tmp_path: Path) -> None:
    """What stands there would make room for what is trained before that had read it."""
    shutil.copytree(tiny_run, tmp_path / "mine", ignore=shutil.ignore_patterns("checkpoints"))
    own, told = tmp_path / "mine", "is the run that is written; give another name= to go on from it"
    for start in (own, own / "reward", own / "reward" / "model"):
        recipe = load_recipe(TINY, [f"reward.start={start}"])
        with pytest.raises(ConfigError, match=told) as caught:
            check_uses(recipe, ["reward"], own)
        assert len(caught.value.problems) == 1
        check_uses(recipe, ["ppo"], own)
    recipe = load_recipe(TINY, [f"reward.start={own}"])
    check_uses(recipe, ["reward"], tmp_path / "next")
    with pytest.raises(ConfigError, match=told):
        preflight.check(recipe, ["reward"], lambda stage: 1, run=own)
    given = "reward", str(TINY), f"reward.start={own}", "--run", str(own)
    for command in ((*given, "--dry-run"), given):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, ConfigError) and told in str(done.exception)
    # As `python -m stages.reward` does it, which loads the trainers, too.
    code = "from stages.command import run_stage; run_stage('reward', lambda context: None)"
    alone = [sys.executable, "-c", code, "--recipe", str(TINY), given[2], "--run", str(own)]
    stage_alone = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, check=False)
    assert stage_alone.returncode == 2 and told in stage_alone.stderr
    assert (own / "reward" / "manifest.json").is_file()
