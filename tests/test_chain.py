"""The chain on the command line: it runs, skips what is done, reruns what changed, and says what is wrong."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from running import TINY, rlhf
from safetensors.torch import load_file

ARTIFACTS = ("sft", "reward", "ppo")
KINDS = ("demonstrations", "comparisons", "prompts")


def stamps(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may change; the folder to run commands in is its grandparent."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"


def test_summary_has_the_promised_figures(tiny_run: Path) -> None:
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary["run"] == "tiny"
    manifests = {s: json.loads((tiny_run / s / "manifest.json").read_text()) for s in (*ARTIFACTS, "evaluate")}
    assert summary["seconds"] == pytest.approx(sum(m["seconds"] for m in manifests.values()), abs=0.02)
    assert summary["sft"] == {key: manifests["sft"]["results"][key] for key in ("eval_loss", "uniform_loss")}
    assert set(summary["reward"]) == {"accuracy", "accuracy_ci", "bayes_accuracy"}
    low, high = summary["reward"]["accuracy_ci"]
    assert low < summary["reward"]["accuracy"] < high
    assert 0.8 < summary["reward"]["bayes_accuracy"] < 0.9
    expected = {"gold_before", "gold_after", "win_rate", "win_rate_ci", "kl", "episodes", "seconds"}
    assert expected <= set(summary["ppo"])
    assert summary["ppo"]["episodes"] == 3 * 8
    assert summary["ppo"]["held_out_judge"] == "reward" and summary["ppo"]["judge_trained_on"] is False
    assert (summary["ppo"]["prompts"], summary["ppo"]["responses"]) == (16, 16)


def test_artifacts_are_readable_by_peers(tiny_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for stage in ARTIFACTS:
        files = {path.name for path in (tiny_run / stage / "model").iterdir()}
        assert "model.safetensors" in files
        assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
        AutoTokenizer.from_pretrained(tiny_run / stage / "model")
    AutoModelForCausalLM.from_pretrained(tiny_run / "ppo" / "model")
    reward = AutoModelForSequenceClassification.from_pretrained(tiny_run / "reward" / "model")
    assert reward.config.num_labels == 1


def test_metrics_and_samples_are_there(tiny_run: Path) -> None:
    import pyarrow.parquet

    lines = [json.loads(line) for line in (tiny_run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "objective/kl" in line]
    assert steps == [1, 2, 3]
    wanted = {"objective/scores", "objective/rlhf_reward", "objective/entropy", "policy/clipfrac", "policy/approxkl"}
    wanted |= {"loss/policy", "loss/value", "val/explained_variance", "tokens/response_length"}
    wanted |= {"perf/seconds_collect", "perf/seconds_update", "perf/tokens_per_second"}
    assert all(wanted <= set(line) for line in lines if "objective/kl" in line)
    table = pyarrow.parquet.read_table(next((tiny_run / "evaluate" / "samples").glob("*.parquet")))
    assert table.num_rows == 16
    assert {"prompt", "before", "after", "gold_before", "gold_after"} <= set(table.column_names)


def test_the_reward_model_says_how_its_comparisons_were_checked(tiny_run: Path) -> None:
    found = json.loads((tiny_run / "reward" / "check.json").read_text())
    headline = json.loads((tiny_run / "reward" / "manifest.json").read_text())["check"]
    assert found["verdict"] == headline["verdict"] == "pass" and headline["comparisons"] == 320
    assert headline["findings"].keys() == {finding["kind"] for finding in found["findings"]}


def test_second_run_does_nothing_and_says_so(own_run: Path) -> None:
    before = stamps(own_run)
    done = rlhf("run", str(TINY), folder=own_run.parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("complete, nothing to do") == 4
    assert stamps(own_run) == before


def test_change_reruns_the_stage_and_what_follows(own_run: Path) -> None:
    before = stamps(own_run)
    done = rlhf("run", str(TINY), "ppo.kl.coef=0.2", "ppo.micro_batch_tokens=512", folder=own_run.parents[1])
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+): complete", done.stdout, re.M) == ["sft", "reward"]
    assert re.findall(r"^(\w+): .*running again", done.stdout, re.M) == ["ppo", "evaluate"]
    after = stamps(own_run)
    assert all(after[name] == before[name] for name in before if name.startswith(("sft/", "reward/")))


def test_what_affects_nothing_reruns_nothing(own_run: Path) -> None:
    overrides = ("ppo.micro_batch_tokens=512", "ppo.generation.batch_size=3", "tracking.wandb.project=other")
    done = rlhf("run", str(TINY), *overrides, folder=own_run.parents[1])
    assert done.stdout.count("complete, nothing to do") == 4, done.stdout


def test_force_gives_the_same_weights(own_run: Path) -> None:
    before = load_file(own_run / "ppo" / "model" / "model.safetensors")
    done = rlhf("run", str(TINY), "--from", "ppo", "--until", "ppo", "--force", folder=own_run.parents[1])
    assert done.returncode == 0, done.stderr
    after = load_file(own_run / "ppo" / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_damaged_input_is_named_before_work_is_lost(own_run: Path) -> None:
    path = own_run / "reward" / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = rlhf("ppo", str(TINY), "--force", folder=own_run.parents[1])
    assert done.returncode == 2
    assert "model.safetensors: damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert (own_run / "ppo" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "absent.yaml"), "absent.yaml"),
        (("run", str(TINY), "ppo.kl_coef=0.1"), "did you mean ppo.kl.coef?"),
        (("run", str(TINY), "--from", "ppo"), "run with --from sft"),
        (("run", str(TINY), "--from", "nowhere"), "nowhere is not a stage"),
        (("run", str(TINY), "--from", "ppo", "--until", "sft"), "exchange them"),
        (
            ("run", str(TINY), *(f"data.{kind}=[{{path: absent.jsonl}}]" for kind in KINDS)),
            "absent.jsonl: no such file",
        ),
        (
            ("run", str(TINY), "evaluate.gold=absent.module:gold"),
            "absent.module:gold: no module absent.module is installed",
        ),
        (("run", str(TINY), "parallelism.processes=5"), "does not split over 5 processes"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], line: str, tmp_path: Path) -> None:
    done = rlhf(*arguments, folder=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert all(problem.startswith("error: ") for problem in done.stderr.splitlines())
    assert not (tmp_path / "runs").exists()


def test_dry_run_prints_a_recipe_that_loads(tmp_path: Path) -> None:
    from rlhf.recipe import load_recipe

    done = rlhf("run", str(TINY), "ppo.kl.coef=1e-5", "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "resolved.yaml").write_text(done.stdout)
    assert load_recipe(tmp_path / "resolved.yaml").ppo.kl.coef == 1e-5
    assert not (tmp_path / "runs").exists()


def test_dry_run_says_what_a_run_would_refuse(tmp_path: Path) -> None:
    """Nothing of the recipe is hidden by what is wrong with it, and all of that is said at once."""
    wrong = ["model.path=./modle", "data.prompts=[{path: absent.jsonl}]", "model.attention=flash_attention_2"]
    done = rlhf("run", str(TINY), "--dry-run", *wrong, folder=tmp_path)
    assert done.returncode == 2
    assert "path: ./modle" in done.stdout
    for part in ("model.path=./modle: no such directory; give one made by", "absent.jsonl: no such file", "flash-attn"):
        assert sum(part in line for line in done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "runs").exists()


def test_two_processes_run_the_whole_chain(tiny_run_of_two: Path) -> None:
    for stage, role in (("sft", "policy"), ("reward", "reward"), ("ppo", "policy"), ("ppo", "value")):
        manifest = json.loads((tiny_run_of_two / stage / "manifest.json").read_text())
        assert manifest["processes"] == 2
        assert manifest["engine"][role] == "DistributedDataParallel"


def test_inputs_of_another_recipe_are_refused(own_run: Path) -> None:
    done = rlhf("run", str(TINY), "seed=1", "--from", "ppo", folder=own_run.parents[1])
    assert done.returncode == 2
    assert "sft: made by another recipe or from other data; run with --from sft" in done.stderr
    assert (own_run / "ppo" / "manifest.json").is_file()


def test_a_run_in_use_is_refused(own_run: Path) -> None:
    with (own_run / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = rlhf("run", str(TINY), folder=own_run.parents[1])
    assert done.returncode == 2
    assert "in use by another rlhf process" in done.stderr


def test_the_gold_scorer_is_part_of_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf.recipe import load_recipe
    from stages.lineage import lineage_of

    source = "def gold(prompts, responses):\n    return [{} for _ in responses]\n"
    (tmp_path / "my_gold.py").write_text(source.format("0.0"))
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe(TINY, ["evaluate.gold=my_gold:gold"])
    before = lineage_of(recipe, "evaluate", tmp_path).fingerprint
    assert lineage_of(recipe, "evaluate", tmp_path).fingerprint == before
    (tmp_path / "my_gold.py").write_text(source.format("1.0"))
    assert lineage_of(recipe, "evaluate", tmp_path).fingerprint != before
