"""What a running command does when it is told to save, to stop, or to stop at once, and when its launcher dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from interruption import (
    assert_same,
    kill_tree,
    lines_of,
    no_process_left,
    own_copy,
    stage_process,
    start,
    wait_for,
)
from running import TINY, rlhf

from launch.pipeline import interruption
from rlhf.errors import ArtifactError
from rlhf.store.unfinished import hold

LONG = "ppo.steps=400"  # longer than any test waits
NEVER = "checkpoint.every_steps=null"  # so that each checkpoint comes from a signal


def running_ppo(reference: Path, folder: Path, *overrides: str) -> tuple[Path, subprocess.Popen[str]]:
    """A run whose ppo stage has been evaluated and has made two steps."""
    run = own_copy(reference, folder, ["sft", "reward"])
    process = start("ppo", str(TINY), NEVER, *overrides, folder=folder)
    assert wait_for(lambda: lines_of(run / "ppo" / "metrics.jsonl") >= 3, process)
    return run, process


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "ppo" / "checkpoints").glob("step-??????"))


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.soak)])
def test_a_signal_ends_behind_a_checkpoint_with_a_code_of_its_own(
    number: signal.Signals, tiny_run: Path, tmp_path: Path
) -> None:
    run, process = running_ppo(tiny_run, tmp_path, LONG)
    process.send_signal(number)
    code, out, _ = end(process)
    assert code == 75, out
    assert f"{number.name}: ending behind a checkpoint" in out
    (step,) = checkpoints(run)
    assert f"stopped by {number.name} after step {step}" in out
    assert lines_of(run / "ppo" / "metrics.jsonl") >= step
    assert not (run / "ppo" / "manifest.json").exists()
    assert no_process_left(str(tmp_path))


def test_what_remains_is_said() -> None:
    chain = ["sft", "reward", "ppo", "evaluate"]
    assert interruption("ppo", True, chain) == "ppo is complete, evaluate remains; the same command goes on"
    assert interruption("reward", True, chain).startswith("reward is complete, ppo and evaluate remain;")
    assert interruption("evaluate", True, chain).startswith("evaluate is complete, that is all;")
    assert interruption("ppo", False, chain) == "ppo stopped"


def test_an_interruption_while_the_command_loads_is_one_line(tmp_path: Path) -> None:
    """The interpreter says what it imports, so that the signal comes in the middle of it."""
    command = [sys.executable, "-P", "-X", "importtime", "-m", "launch.entry", "run", "demo"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    assert process.stderr is not None
    assert any("typer" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, out, said) == (130, "", ["interrupted before anything began"])


def test_the_chain_goes_on_where_it_was_stopped(tiny_run: Path, tmp_path: Path) -> None:
    run, process = running_ppo(tiny_run, tmp_path)
    process.send_signal(signal.SIGTERM)
    code, out, _ = end(process)
    assert code == 75, out
    done = rlhf("run", str(TINY), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("complete, nothing to do") >= 2
    for stage in ("ppo", "evaluate"):
        assert_same(run / stage, tiny_run / stage)


def test_two_processes_agree_to_save_and_to_stop(tiny_run_of_two: Path, tmp_path: Path) -> None:
    run, process = running_ppo(tiny_run_of_two, tmp_path, LONG, "parallelism.processes=2")
    os.kill(stage_process(process), signal.SIGUSR1)  # one rank alone is told
    assert wait_for(lambda: len(checkpoints(run)) == 1, process)
    process.send_signal(signal.SIGTERM)
    code, out, _ = end(process)
    assert code == 75, out
    assert len(checkpoints(run)) == 2
    assert no_process_left(str(tmp_path))


def test_a_signal_to_save_saves_and_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    run, process = running_ppo(tiny_run, tmp_path, LONG)
    for expected in (1, 2):
        process.send_signal(signal.SIGUSR1)
        assert wait_for(lambda expected=expected: len(checkpoints(run)) == expected, process)  # type: ignore[misc]
    before = lines_of(run / "ppo" / "metrics.jsonl")
    assert wait_for(lambda: lines_of(run / "ppo" / "metrics.jsonl") > before, process)
    kill_tree(process)


def test_a_second_signal_ends_at_once(tiny_run: Path, tmp_path: Path) -> None:
    slow = ("ppo.prompts_per_step=4096", "ppo.generation.max_new_tokens=32", "ppo.steps=3")
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    process = start("ppo", str(TINY), NEVER, *slow, folder=tmp_path)
    assert wait_for((run / "ppo" / ".partial" / "lineage.json").is_file, process)
    time.sleep(3)  # it is in its first step now, which lasts much longer
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    code, out, _ = end(process)
    assert code == 128 + signal.SIGTERM, out
    assert time.monotonic() - sent < 3
    assert checkpoints(run) == []
    assert no_process_left(str(tmp_path))


def test_who_does_not_stop_in_time_is_ended(tiny_run: Path, tmp_path: Path) -> None:
    slow = ("ppo.prompts_per_step=4096", "ppo.generation.max_new_tokens=32", "ppo.steps=3")
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    process = start("ppo", str(TINY), NEVER, "checkpoint.grace_seconds=1", *slow, folder=tmp_path)
    assert wait_for((run / "ppo" / ".partial" / "lineage.json").is_file, process)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    code, out, _ = end(process)
    assert code == 128 + signal.SIGTERM
    assert "no checkpoint within checkpoint.grace_seconds=1" in out
    assert no_process_left(str(tmp_path))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_while_a_stage_loads_ends_it_quietly(processes: int, tiny_run: Path, tmp_path: Path) -> None:
    own_copy(tiny_run, tmp_path, ["sft", "reward"])
    process = start("ppo", str(TINY), f"parallelism.processes={processes}", folder=tmp_path)
    assert wait_for(lambda: len(psutil.Process(process.pid).children()) == processes, process)
    time.sleep(1.5)
    process.send_signal(signal.SIGUSR1)  # nothing to save yet, and no reason to end
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert code == 75, out + err
    assert err == ""


def test_a_signal_that_reaches_one_process_alone_ends_all(tiny_run_of_two: Path, tmp_path: Path) -> None:
    run, process = running_ppo(tiny_run_of_two, tmp_path, LONG, "parallelism.processes=2")
    os.kill(max(child.pid for child in psutil.Process(process.pid).children()), signal.SIGTERM)
    code, out, _ = end(process)
    assert code == 75, out
    assert len(checkpoints(run)) == 1
    assert "SIGTERM after step" in out


def test_without_its_launcher_a_stage_ends_behind_a_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    slow = ("ppo.prompts_per_step=512", "ppo.generation.max_new_tokens=32")  # so that a step outlasts a command
    run, process = running_ppo(tiny_run, tmp_path, LONG, *slow)
    orphan = psutil.Process(stage_process(process))
    process.kill()
    process.wait()
    with pytest.raises(ArtifactError, match="in use by another rlhf process"):
        hold(run)
    orphan.wait(timeout=60)
    assert len(checkpoints(run)) == 1
    hold(run).close()
    process.communicate()


def test_under_torchrun_too_a_signal_ends_behind_a_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stages.ppo"]
    options = ["--recipe", str(TINY), "--run-dir", str(run), NEVER, LONG]
    process = subprocess.Popen(
        [sys.executable, "-P", *torchrun, *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert wait_for(lambda: lines_of(run / "ppo" / "metrics.jsonl") >= 3, process)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the agent and its workers at the same time
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    (step,) = checkpoints(run)
    assert f"SIGTERM after step {step}" in out


def test_a_command_that_is_interrupted_says_so() -> None:
    code = (
        "import sys\nfrom launch import cli\n"
        "@cli.app.command()\ndef wait():\n    raise KeyboardInterrupt\n"
        "sys.argv = ['rlhf', 'wait']\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
