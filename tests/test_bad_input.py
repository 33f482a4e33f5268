"""Bad input: one line per problem, exit code 2, nothing written, on the real command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from interruption import EVERY_STEP, own_copy
from running import TINY, rlhf

GOOD = {"prompt": "Say it.", "chosen": "Yes.", "rejected": "No."}


def files_of(folder: Path) -> dict[str, int]:
    """All files below a folder with the time of their last change; locks hold nothing."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def refused(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> list[str]:
    """The problems that a command ends with, after it has written nothing."""
    before = files_of(folder)
    command = [sys.executable, "-P", "-m", "launch.cli", *arguments]
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), done.stderr
    assert files_of(folder) == before
    return [line.removeprefix("error: ") for line in lines]


def write_comparisons(path: Path, count: int = 40) -> None:
    path.write_text("".join(json.dumps({**GOOD, "prompt": f"Say {i}."}) + "\n" for i in range(count)))


def comparisons_from(path: Path) -> list[str]:
    return ["reward", str(TINY), f"data.comparisons=[{{path: {json.dumps(str(path))}}}]"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["runn", "demo"], "No such command 'runn'. Did you mean 'run'?; see rlhf --help"),
        (["run"], "Missing argument 'RECIPE'; see rlhf run --help"),
        (["run", "demo", "--nope"], "No such option: --nope"),
        (["run", "demo", "--stop-after", "x"], "Invalid value for '--stop-after'"),
        (["run", "absent.yaml"], "absent.yaml: cannot be read (No such file or directory)"),
        (["run", str(TINY), "ppo.kl_coeff=0.1"], "did you mean ppo.kl.coef?"),
        (["run", str(TINY), "ppo.steps=many"], "ppo.steps=many should be a valid integer"),
        (["run", str(TINY), "ppo.lam=1.5"], "ppo.lam=1.5 should be less than or equal to 1"),
        (["run", str(TINY), "ppo.kl.coef=.nan"], "ppo.kl.coef=nan should be a finite number"),
        (["run", str(TINY), "ppo.prompts_per_step=9"], "does not split into minibatches=2; use prompts_per_step=8"),
        (["run", str(TINY), "sft.batch_size=9", "parallelism.processes=2"], "does not split over 2 processes"),
        (["run", str(TINY), "parallelism.processes=16", "sft.batch_size=32"], "leaves some of 16 processes without"),
        (
            ["run", str(TINY), "parallelism.strategy=fsdp"],
            "parallelism.strategy=fsdp: sft needs GPUs for it",
        ),
        (["reward", str(TINY), "reward.parallelism.strategy=zero2"], "use reward.parallelism={strategy: ddp}, or give"),
        (["run", str(TINY), "parallelism.strategy=fsdp"], "parallelism.strategy=fsdp: evaluate runs under ddp alone"),
        (["run", str(TINY), "ppo.parallelism.cpu_offload=true"], "cpu_offload=true with strategy=ddp"),
        (
            ["run", str(TINY), "ppo.parallelism={strategy: zero2, deepspeed: absent.json}"],
            "absent.json: cannot be read",
        ),
        (
            ["ppo", str(TINY), "ppo.parallelism={strategy: fsdp, processes: 3, shard_over: 2}"],
            "shard_over=2: 3 processes do not split",
        ),
        (["run", str(TINY), "--run", "/proc/rlhf"], "/proc/rlhf: "),
        (["run", str(TINY), "model.init.hidden_size=200000"], "free on its disk, but the sft stage of a model of"),
    ],
)
def test_of_the_command_and_the_recipe(arguments: list[str], problem: str, tmp_path: Path) -> None:
    assert any(problem in line for line in refused(*arguments, folder=tmp_path))
    assert not (tmp_path / "runs").exists()


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def cut(path: Path) -> None:
    write_comparisons(path)
    content = path.read_bytes()
    path.write_bytes(content[:-20])


def not_utf8(path: Path) -> None:
    write_comparisons(path)
    path.write_bytes(path.read_bytes().replace(b"Say 3.", b"Say \xff."))


def with_record(record: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_comparisons(path)
        lines = path.read_text().splitlines()
        lines[6] = record if isinstance(record, str) else json.dumps(record)
        path.write_text("\n".join(lines) + "\n")

    return write


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda path: None, ["votes.jsonl", "no such file"]),
        (lambda path: path.write_text(""), ["votes.jsonl", "no records"]),
        (binary, ["votes.jsonl"]),
        (cut, ["votes.jsonl:40"]),
        (not_utf8, ["votes.jsonl", "UTF-8"]),
        (with_record('{"prompt": "p", '), ["votes.jsonl:7"]),
        (with_record({"prompt": "p", "chosen": "c"}), ["votes.jsonl:7", "rejected"]),
        (with_record({**GOOD, "chosen": " "}), ["votes.jsonl:7", "chosen"]),
        (with_record({**GOOD, "chosen": "No."}), ["votes.jsonl:7", "identical"]),
        (with_record({**GOOD, "prompt": 5}), ["votes.jsonl:7", "prompt"]),
    ],
)
def test_of_a_file_of_examples(
    damage: Callable[[Path], object], parts: Sequence[str], tiny_run: Path, tmp_path: Path
) -> None:
    own_copy(tiny_run, tmp_path, ["sft"])
    path = tmp_path / "votes.jsonl"
    damage(path)
    (problem,) = refused(*comparisons_from(path), folder=tmp_path)
    assert all(part in problem for part in parts), problem


@pytest.fixture
def real_model(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run / "sft" / "model", tmp_path / "model")
    return tmp_path / "model"


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def pickle_alone(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def cut_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def broken_header(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(b"\0" * 8 + path.read_bytes()[8:])


def broken_configuration(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": ')


def no_configuration(model: Path) -> None:
    (model / "config.json").unlink()


def no_tokenizer(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()


def missing_shard(model: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (remove_weights, "model: no model.safetensors; give"),
        (pickle_alone, "but pytorch_model.bin, which can run code"),
        (cut_weights, "bytes where its header says"),
        (broken_header, "no safetensors file, or a damaged one"),
        (broken_configuration, "config.json: cannot be read"),
        (no_configuration, "config.json: missing"),
        (no_tokenizer, "no tokenizer"),
        (missing_shard, "model-00002-of-00002.safetensors: missing"),
    ],
)
def test_of_a_model_directory(damage: Callable[[Path], None], part: str, real_model: Path, tmp_path: Path) -> None:
    damage(real_model)
    (problem,) = refused("run", str(TINY), f"model.path={real_model}", folder=tmp_path)
    assert part in problem
    assert not (tmp_path / "runs").exists()


def test_of_a_tokenizer_that_no_library_can_read(real_model: Path, tmp_path: Path) -> None:
    (real_model / "tokenizer.json").write_text('{"version": "1.0"}')
    lines = refused_by_a_stage("run", str(TINY), f"model.path={real_model}", folder=tmp_path)
    assert "cannot be loaded" in lines[0]


def refused_by_a_stage(*arguments: str, folder: Path) -> list[str]:
    """The problems of a command whose stage alone could see them; its directory is as it was before."""
    done = rlhf(*arguments, folder=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), done.stderr
    left = [
        path for path in (folder / "runs").rglob("*") if path.is_file() and path.name not in (".lock", "recipe.yaml")
    ]
    assert not [
        path for path in left if ".partial" in path.parts or path.name == "metrics.jsonl" and not path.stat().st_size
    ]
    return lines


@pytest.mark.parametrize("processes", [1, 2])
def test_of_a_prompt_longer_than_the_context(processes: int, tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward", "ppo"])
    overrides = ("ppo.generation.max_new_tokens=100", f"parallelism.processes={processes}")
    (line,) = refused_by_a_stage("ppo", str(TINY), *overrides, folder=tmp_path)  # once, however many ranks saw it
    assert "exceed the model's context of 112; use max_new_tokens=" in line
    assert (run / "ppo" / "manifest.json").is_file()  # the result before stands


def test_of_a_prompt_that_would_stop_ppo_hours_later(tmp_path: Path) -> None:
    (line,) = refused_by_a_stage("run", str(TINY), "ppo.generation.max_new_tokens=100", folder=tmp_path)
    assert "exceed the model's context of 112" in line
    assert not (tmp_path / "runs" / "tiny" / "sft" / "manifest.json").exists()


def test_of_a_run_directory_of_another_recipe(tiny_run: Path, tmp_path: Path) -> None:
    own_copy(tiny_run, tmp_path, ["sft"])
    shutil.copy(tiny_run / "recipe.yaml", tmp_path / "runs" / "tiny")
    arguments = ("run", str(TINY), "name=other", "--run", "runs/tiny")
    assert "holds the run of recipe tiny, not other" in refused(*arguments, folder=tmp_path)[0]


def test_of_a_run_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert "cannot be written" in refused("run", str(TINY), folder=tmp_path)[0]


def test_of_a_checkpoint_that_is_damaged(tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    assert rlhf("ppo", str(TINY), EVERY_STEP, "--stop-after", "2", folder=tmp_path).returncode == 0
    path = run / "ppo" / "checkpoints" / "step-000002" / "policy" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = rlhf("ppo", str(TINY), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"warning: {path.relative_to(tmp_path)}: damaged (its checksum differs)" in done.stderr
    assert "going on from runs/tiny/ppo/checkpoints/step-000001" in done.stdout
    from interruption import assert_same

    assert_same(run / "ppo", tiny_run / "ppo")


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text("[]\n{}\n")
    kinds = ("demonstrations", "comparisons", "prompts")
    sources = [f"data.{kind}=[{{path: {kind}-absent.jsonl}}]" for kind in kinds]
    lines = refused("run", str(TINY), *sources, "evaluate.gold=absent.module:gold", folder=tmp_path)
    assert len(lines) == 4
