"""`rlhf init` as a command: without a terminal, at one, and what it writes trains."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sys
from pathlib import Path

import pytest
from proposals import half_b, working_folder  # noqa: F401  # the fixtures `folder` and `model`
from running import ROOT, rlhf

from rlhf.recipe import load_recipe


def test_the_command_asks_nothing_without_a_terminal(folder: Path) -> None:
    done = rlhf("init", "new.yaml", "--comparisons", "votes.jsonl", "--gpus", "0", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "votes.jsonl: format preference, 256 comparisons" in done.stdout
    assert (folder / ".rlhf" / "recipe.schema.json").is_file()
    dry = rlhf("run", "new.yaml", "--dry-run", folder=folder)
    assert dry.returncode == 0 and load_recipe("new.yaml") == load_recipe(_written(folder, dry.stdout))
    again = rlhf("init", "new.yaml", "--comparisons", "votes.jsonl", folder=folder)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "new.yaml: is there already" in again.stderr


def _written(folder: Path, text: str) -> Path:
    (folder / "resolved.yaml").write_text(text)
    return folder / "resolved.yaml"


def test_the_command_asks_at_a_terminal(folder: Path, model: str) -> None:
    answers = [
        ("Model ", model),
        ("Fine-tune it first, on demonstrations or", "y"),
        ("Reward ", "trained"),
        ("Comparisons", "nothing.jsonl"),
        ("nothing.jsonl: no such file.*Comparisons", "votes.jsonl"),
        ("256 comparisons.*another", ""),
        ("Demonstrations ", ""),
        ("Prompts ", "prompts.jsonl"),
        ("300 prompts.*another", ""),
        ("Write it for this machine", "n"),
        ("GPUs", "1"),
        ("GiB of each", "80"),
        ("Write own.yaml", "y"),
    ]
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update(PYTHONPATH=str(ROOT), TERM="dumb", COLUMNS="200")
        os.execv(sys.executable, [sys.executable, "-P", "-m", "launch.cli", "init", "own.yaml"])
    seen = ""
    for pattern, answer in answers:
        while not (found := re.search(pattern + r"[^\n]*: ?$", seen, re.S)):
            assert select.select([descriptor], [], [], 30)[0], (pattern, seen)
            seen += os.read(descriptor, 65536).decode()
        seen = seen[found.end() :]
        os.write(descriptor, f"{answer}\n".encode())
    try:
        while os.read(descriptor, 65536):
            continue
    except OSError:  # the other side has gone
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    recipe = load_recipe("own.yaml")
    assert recipe.model.path == model and recipe.model.lora is None
    assert [source.path for source in recipe.data.demonstrations] == ["votes.jsonl"]
    assert [source.path for source in recipe.data.prompts] == ["prompts.jsonl"]


@pytest.mark.services
@pytest.mark.soak
def test_what_was_written_trains(folder: Path, tiny_run: Path) -> None:
    """From one's own model and votes alone to the first steps of PPO, by the two commands that the docs name."""
    model = str(tiny_run / "sft" / "model")
    done = rlhf("init", "--model", model, "--comparisons", "votes.jsonl", "--gpus", "0", "--yes", folder=folder)
    assert done.returncode == 0, done.stderr
    overrides = ("ppo.steps=2", "ppo.prompts_per_step=8", "evaluate.prompts=8", "tracking.wandb.mode=disabled")
    done = rlhf("run", "my.yaml", *overrides, "--run", "runs/trial", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "runs" / "trial" / "summary.json").read_text())["ppo"]["episodes"] == 16
