"""PPO from what users have: two models and a file of prompts, a function, a server, a reward model of other tokens."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from running import TINY, rlhf, stage
from safetensors.torch import load_file
from test_own_reward_servers import lengths, server

from rlhf.errors import ArtifactError, ConfigError, RewardError
from rlhf.recipe import load_recipe
from rlhf.store.artifact import find_artifact, load_artifact
from stages.adoption import adopt_missing
from stages.context import StageOptions
from stages.lineage import kinds_of, lineage_of
from stages.preflight import check

pytestmark = pytest.mark.filterwarnings("ignore")  # whole stages run here: what their libraries warn of is not ours
PPO = ["ppo.steps=2", "ppo.evaluate_every=0"]
FUNCTION = "def score(prompts, responses):\n    return [float(len(r)) for r in responses]\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTION)
    yield tmp_path


def ppo(run: Path, *overrides: str) -> dict[str, object]:
    """PPO in this process with its inputs taken in; its manifest's results."""
    torch.set_num_threads(1)
    adopt_missing(load_recipe(TINY, overrides), "ppo", StageOptions(run, run / "ppo"))
    output = stage("ppo", TINY, run, run / "ppo", [*PPO, *overrides])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(abs(line["objective/scores"]) < 100 for line in lines)
    return dict(json.loads((output / "manifest.json").read_text())["results"])


def test_a_function_and_a_server_of_one_rule_train_alike(tiny_run: Path, own: Path) -> None:
    sft = f"sft.use={tiny_run}/sft/model"
    by_function = ppo(own / "function", sft, "reward.use=mine:score")
    manifest = json.loads((own / "function" / "reward" / "manifest.json").read_text())
    assert manifest["use"] == "mine:score"
    assert manifest["results"]["score_deviation"] > 0 and "accuracy" in manifest["results"]  # the toy's votes judge it
    assert not (own / "function" / "sft" / "model").exists()  # it stays where it is
    with server(lengths) as (address, handler):
        by_server = ppo(own / "server", sft, f"reward.use={address}")
    assert by_server == by_function
    assert sum(len(question["responses"]) for question in handler.asked) > 64 + 2 * 8


def test_two_models_of_ones_own(tiny_run: Path, own: Path) -> None:
    two = [f"sft.use={tiny_run}/sft/model", f"reward.use={tiny_run}/reward/model"]
    ppo(own / "run", *two)
    adopted, ours = find_artifact(own / "run" / "reward"), find_artifact(tiny_run / "reward")
    assert adopted is not None and ours is not None
    assert adopted.model == tiny_run / "reward" / "model"
    assert adopted.results["accuracy"] == pytest.approx(ours.results["accuracy"])
    assert load_artifact(own / "run" / "sft").model == tiny_run / "sft" / "model"


def test_a_reward_that_fails_leaves_the_trained_one(tiny_run: Path, own: Path) -> None:
    shutil.copytree(tiny_run, own / "run")
    before = load_artifact(own / "run" / "reward").fingerprint
    (own / "mine.py").write_text("def score(prompts, responses):\n    raise RuntimeError('no')\n")
    options = StageOptions(own / "run", own / "run" / "ppo")
    with pytest.raises(RewardError, match="raised RuntimeError: no"):
        adopt_missing(load_recipe(TINY, ["reward.use=mine:score"]), "ppo", options)
    assert load_artifact(own / "run" / "reward").fingerprint == before
    assert not (own / "run" / "reward" / ".previous").exists()


def test_what_is_referred_to_must_stay(tiny_run: Path, own: Path) -> None:
    shutil.copytree(tiny_run / "sft" / "model", own / "policy")
    overrides = ["sft.use=policy", "reward.use=mine:score"]
    stage("sft", TINY, own / "run", own / "run" / "sft", overrides)
    config = own / "policy" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ArtifactError, match="changed or gone since sft took it in; run `rlhf run RECIPE` again"):
        load_artifact(own / "run" / "sft")
    adopt_missing(load_recipe(TINY, overrides), "reward", StageOptions(own / "run", own / "run" / "reward"))
    assert load_artifact(own / "run" / "sft").model == own / "policy"


def test_an_adapter_is_merged_into_the_stage(tiny_run: Path, own: Path) -> None:
    lora = ["model.lora={rank: 2, alpha: 4.0}", f"model.path={tiny_run}/sft/model"]
    stage("sft", TINY, own / "made", own / "made" / "sft", lora)
    use = f"sft.use={own}/made/sft/adapter"
    stage("sft", TINY, own / "run", own / "run" / "sft", [use])
    made, taken = (own / "made" / "sft" / "model", own / "run" / "sft" / "model")
    assert (taken / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert lineage_of(load_recipe(TINY, [use]), "sft", own / "run").data["model"]


def test_qlora_starts_at_its_reference_and_learns(tiny_run: Path, own: Path) -> None:
    few_bits = "model.lora={rank: 4, alpha: 8.0, quantization: nf4}"
    uses = [f"sft.use={tiny_run}/sft/model", f"reward.use={tiny_run}/reward/model"]
    ppo(own / "run", few_bits, *uses)
    lines = [json.loads(line) for line in (own / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert abs(lines[0]["objective/kl"]) < 1e-4 < abs(lines[1]["objective/kl"])  # the reference has as few bits
    assert lines[0]["policy/clipfrac"] < 0.2
    before, after = (load_file(f / "model.safetensors") for f in (tiny_run / "sft/model", own / "run/ppo/model"))
    assert set(before) == set(after)
    assert {weight.dtype for weight in after.values()} == {torch.float32}


def test_votes_judge_a_reward_only_where_there_are_some(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    prompts = f"data.prompts=[{{path: {tmp_path}/prompts.jsonl}}]"
    use = ["sft.use=x", "reward.use=mine:score"]
    assert kinds_of(load_recipe(TINY, use), "reward") == ("comparisons", "prompts")
    assert kinds_of(load_recipe(TINY, [*use, prompts]), "reward") == ("prompts",)
    assert kinds_of(load_recipe(TINY, use), "sft") == ()


def problems(own: Path, *overrides: str) -> str:
    with pytest.raises(Exception, match=".") as raised:
        check(load_recipe(TINY, overrides), ["sft", "reward", "ppo"], lambda stage: 1)
    return str(raised.value)


def test_what_cannot_be_used_is_said_before_anything_runs(tiny_run: Path, own: Path) -> None:
    assert "sft.use=mine:score: is a function; give a language model" in problems(own, "sft.use=mine:score")
    for name in ("./nowhere", "models/typo", "typo"):
        assert f"sft.use={name}: no such directory" in problems(own, f"sft.use={name}")
    shutil.copytree(tiny_run / "sft" / "model", own / "policy")
    assert "reward.use=policy: no head that gives one score" in problems(own, "reward.use=policy")
    assert "ppo.held_out.judge=policy: no head" in problems(own, "ppo.held_out.judge=policy", "ppo.evaluate_every=1")
    assert "reward.use=" not in problems(own, f"reward.use={tiny_run}/reward/model", "sft.use=typo")
    assert "reward.use=http://a:b@c" not in problems(own, "reward.use=http://a:b@c/score")
    assert "mine:other: mine.py has no function other; it has: score" in problems(own, "reward.use=mine:other")
    both = problems(own, "sft.use=org/name@012", "model.path=org/other")
    assert both == "model.path=org/other: is not used beside sft.use=org/name@012; remove one of them"


def test_the_first_model_is_looked_at_before_anything_runs(own: Path) -> None:
    (own / "model.bin").write_bytes(b"0")
    (own / "models").mkdir()
    (own / "models" / "model.bin").write_bytes(b"0")
    for name in ("./modle", "../modle", "/nowhere/modle", "~/modle", "modle", "model.bin", "models/model.bin"):
        with pytest.raises(ConfigError, match=f"model.path={re.escape(name)}: no such directory; give one made by"):
            check(load_recipe(TINY, [f"model.path={name}"]), ["sft"], lambda stage: 1)
    for name in ("org/name", "org/name@0123abc"):  # what only the hub knows
        check(load_recipe(TINY, [f"model.path={name}"]), ["sft"], lambda stage: 1)


def test_a_response_that_fills_the_context_is_refused_before_anything_runs(own: Path) -> None:
    said = "ppo.generation.max_new_tokens=112 leaves no room .* context of 112; use at most max_new_tokens=56,"
    with pytest.raises(ConfigError, match=said):
        check(load_recipe(TINY, ["ppo.generation.max_new_tokens=112"]), ["sft", "ppo"], lambda stage: 1)
    (own / "small").mkdir()
    (own / "small" / "config.json").write_text('{"n_positions": 256}')
    use = ["sft.use=small", "ppo.generation.max_new_tokens=400"]
    with pytest.raises(ConfigError, match="context of 256"):
        check(load_recipe(TINY, use), ["ppo"], lambda stage: 1)


@pytest.mark.services
@pytest.mark.soak
def test_ppo_by_the_command_line(tiny_run: Path, own: Path) -> None:
    """A function in the user's own file, a server, and a reward model of another tokenizer."""
    other = rlhf("run", str(TINY), "name=other", "model.init.vocab_size=300", "--until", "reward", folder=own)
    assert other.returncode == 0, other.stderr
    sft = f"sft.use={tiny_run}/sft/model"
    with server(lengths) as (address, _):
        for number, use in enumerate(("mine:score", address, "runs/other/reward/model")):
            command = ("ppo", str(TINY), f"name=own-{number}", sft, f"reward.use={use}")
            done = rlhf(*command, folder=own)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "episodes" in done.stdout and use in done.stdout.replace("\n", "")
            assert ("it is fed text" in done.stdout) == (number == 2)
    again = rlhf(*command, folder=own)
    assert again.stdout.count("complete, nothing to do") == 1


@pytest.mark.services
@pytest.mark.beside
def test_a_server_that_dies_ends_ppo_behind_its_last_checkpoint(tiny_run: Path, own: Path) -> None:
    options = [f"sft.use={tiny_run}/sft/model", "checkpoint.every_steps=1", "reward.server.patience_seconds=1"]
    checkpoints = own / "runs" / "tiny" / "ppo" / "checkpoints"

    def short_lived(question: dict[str, object]) -> tuple[int, object]:
        return (503, {}) if any(checkpoints.glob("step-*/checksums.json")) else lengths(question)

    with server(short_lived) as (address, handler):
        done = rlhf("ppo", str(TINY), *options, f"reward.use={address}", folder=own)
        assert done.returncode == 74
        assert done.stderr.splitlines()[-1].startswith(f"error: reward {address}: no answer within")
        handler.answer = staticmethod(lengths)  # type: ignore[assignment]
        again = rlhf("ppo", str(TINY), *options, f"reward.use={address}", folder=own)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout
