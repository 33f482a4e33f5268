"""What befalls a stage while an asynchronous checkpoint is in flight: processes, signals, bad input, the best."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from interruption import EVERY_STEP, assert_same, lines_of, manifest, own_copy, stage_process, wait_for
from judges import judged_by_chance
from running import TINY, rlhf
from waiting_checkpoints import ASIDE, held_up, killed_in_flight, standing, unfinished

pytestmark = pytest.mark.services
INPUTS = ["sft", "reward"]


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.soak), "fsdp"])
def test_two_processes_killed_in_flight_go_on_bit_for_bit(strategy: str, tiny_run: Path, tmp_path: Path) -> None:
    parallelism = f"ppo.parallelism={{strategy: {strategy}, processes: 2}}"
    whole = own_copy(tiny_run, tmp_path / "whole", INPUTS)
    assert rlhf("ppo", str(TINY), parallelism, folder=tmp_path / "whole").returncode == 0
    run = own_copy(tiny_run, tmp_path / "killed", INPUTS)
    killed_in_flight(run, parallelism, processes=2)
    done = rlhf("ppo", str(TINY), parallelism, EVERY_STEP, ASIDE, folder=tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert "going on from runs/tiny/ppo/checkpoints/step-000001" in done.stdout
    assert_same(run / "ppo", whole / "ppo")


def test_sigterm_waits_for_what_is_in_flight_and_writes_its_own(tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, INPUTS)
    folder = run / "ppo" / "checkpoints"
    with held_up(run, "ppo.steps=400", "ppo.evaluate_every=0", EVERY_STEP, ASIDE) as (gate, process):
        assert wait_for(lambda: lines_of(run / "ppo" / "metrics.jsonl") >= 3, process)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        assert process.poll() is None and standing(folder) == [] and unfinished(folder) == [1]
        (gate / "all").touch()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 75 and err == ""
    first, last = standing(folder)
    assert first == 1 and last == lines_of(run / "ppo" / "metrics.jsonl")
    assert f"stopped by SIGTERM after step {last}; the checkpoint of step {last} stands" in out


@pytest.mark.soak
def test_sigusr1_gets_a_checkpoint_of_its_own_behind_the_one_in_flight(tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, INPUTS)
    folder = run / "ppo" / "checkpoints"
    settings = ("ppo.steps=400", "ppo.evaluate_every=0", "checkpoint.every_steps=400", ASIDE)
    with held_up(run, *settings, processes=2) as (gate, process):
        for asked in (1, 2):
            before = lines_of(run / "ppo" / "metrics.jsonl")
            assert wait_for(lambda before=before: lines_of(run / "ppo" / "metrics.jsonl") > before, process)
            os.kill(stage_process(process), signal.SIGUSR1)
            assert wait_for(lambda: unfinished(folder) != [], process)
            assert asked == 1 or standing(folder) == []
        (gate / "all").touch()
        assert wait_for(lambda: len(standing(folder)) == 2, process)


REWARD = """
def score(prompts, responses, calls=[]):
    calls.append(1)
    return [float(len(response)) for response in responses] if len(calls) < 3 else None
"""


@pytest.mark.soak
def test_a_stage_that_ends_for_bad_input_leaves_what_is_in_flight_whole(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tired.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    run = own_copy(tiny_run, tmp_path, INPUTS)
    settings = ("ppo.evaluate_every=0", "ppo.rewards=[{use: 'tired:score'}]", "ppo.steps=9", EVERY_STEP, ASIDE)
    with held_up(run, *settings) as (gate, process):
        assert wait_for(lambda: lines_of(run / "ppo" / "metrics.jsonl") >= 2, process)
        time.sleep(1.0)
        assert process.poll() is None
        (gate / "all").touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "tired:score" in err and "Traceback" not in err
    assert standing(run / "ppo" / "checkpoints") == [1]


@pytest.mark.soak
def test_the_best_is_that_of_a_run_that_waits_for_each_checkpoint(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*judged_by_chance(tmp_path, monkeypatch), "ppo.steps=8", "ppo.held_out.prompts=4")
    found = {}
    for name, own in (("waiting", ()), ("aside", (ASIDE, EVERY_STEP))):
        run = own_copy(tiny_run, tmp_path / name, INPUTS)
        done = rlhf("ppo", str(TINY), *settings, *own, folder=tmp_path / name)
        assert done.returncode == 0, done.stderr
        found[name] = run / "ppo"
    assert_same(found["aside"], found["waiting"])
    best = manifest(found["aside"])["results"]["best_step"]
    assert 0 < best < 8  # so that it comes from a checkpoint
    assert [standing(stage / "checkpoints") for stage in found.values()] == [[best], [best]]
    ours, theirs = (json.loads((stage / "manifest.json").read_text())["checksums"] for stage in found.values())
    assert ours == theirs and any(name.startswith("best/") for name in ours)
