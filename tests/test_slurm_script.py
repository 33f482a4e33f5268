"""Batch scripts of Slurm, without Slurm."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_golden import BASELINES, CASES, PLAIN, specified, text

from launch.clusters.job import SECRETS
from launch.clusters.site import read_site
from launch.clusters.slurm import SCHEDULER
from launch.clusters.slurm_queue import QueuedJob, gpus_in, hours_in, in_a_line
from launch.clusters.slurm_script import SHARED, render, word
from launch.clusters.slurm_states import StageState, Tries, read_tries, state_of
from rlhf.errors import ConfigError

IDS = {"sft": "10", "reward": "11", "ppo": "12", "evaluate": "13"}


@pytest.mark.parametrize("case", CASES)
def test_script(case: str) -> None:
    assert text(case) == (BASELINES / f"{case}.sbatch").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_bash_can_read_it(case: str) -> None:
    spec, site, _ = CASES[case]
    for each in render(spec, site):
        done = subprocess.run(["bash", "-n"], input=each.text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), each.name


@pytest.mark.parametrize("code", ["2", "74"])
def test_a_process_writes_its_exit_code_where_there_are_spaces(code: str, tmp_path: Path) -> None:
    marks = tmp_path / "my runs" / ".ppo-1-0"
    marks.mkdir(parents=True)
    program = SHARED.read_text().partition("process='")[2].partition("\n'\n")[0].replace("sleep 5", ":")
    words = ["bash", "-c", program, "ppo", str(marks), "1", "sh", "-c", f"exit {code}"]
    slurm = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    done = subprocess.run(words, env={**os.environ, **slurm}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (int(code), "")
    assert (marks / "0").read_text() == f"{code}\n"


@pytest.mark.parametrize(("path", "status", "up"), [("", 503, True), ("/health", 200, True), ("/health", 503, False)])
def test_a_server_is_up_by_its_path_or_by_taking_connections(path: str, status: int, up: bool) -> None:
    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            asked = b""
            while not asked.endswith(b"\r\n\r\n") and (more := connection.recv(1000)):
                asked += more
            connection.sendall(f"HTTP/1.0 {status} Any\r\n\r\n".encode())

    program = "answers() {" + SHARED.read_text().partition("\nanswers() {")[2].partition("\n}\n")[0] + "\n}\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        words = ["bash", "-c", f'{program}answers 127.0.0.1 "$0" "$1"', str(listener.getsockname()[1]), path]
        assert (subprocess.run(words, check=False).returncode == 0) == up
    assert subprocess.run(words, check=False).returncode != 0  # it is gone


@pytest.mark.parametrize(("given", "found"), [("4,5,6,7", "6,7"), ("", "2,3")])
def test_gpus_are_counted_among_those_of_the_job(given: str, found: str) -> None:
    program = "gpus() {" + SHARED.read_text().partition("\ngpus() {")[2].partition("\n}\n")[0] + "\n}\ngpus 2 3"
    own = {**os.environ, "CUDA_VISIBLE_DEVICES": given}
    done = subprocess.run(["bash", "-c", program], env=own, capture_output=True, text=True, check=True)
    assert done.stdout == f"{found}\n"


def test_a_script_for_each_stage_or_one_for_all() -> None:
    assert [each.name for each in render(specified(PLAIN), PLAIN)] == [f"{stage}.sbatch" for stage in IDS]
    whole = render(specified(PLAIN, one_allocation=True), PLAIN)
    assert [each.name for each in whole] == ["chain.sbatch"]


def test_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "s3cret")
    for spec, site, _ in CASES.values():
        assert not [
            each for each in render(spec, site) if "s3cret" in each.text or any(n in each.text for n in SECRETS)
        ]


@pytest.mark.parametrize("run", ["/shared/runs/tiny", "/shared/my runs/it's $HOME"])
@pytest.mark.parametrize(
    "part", ["{run}/recipe.yaml", "{run}", "a=[{run}/x y,'b']", "{run}s/other", "plain", "$HOME `x`"]
)
def test_words_reach_the_command_as_they_are(run: str, part: str) -> None:
    spec = replace(specified(PLAIN), run=Path(run))
    given = part.format(run=run)
    program = f"run=$1; printf %s {word(given, spec)}"
    done = subprocess.run(["bash", "-c", program, "bash", run], capture_output=True, text=True, check=True)
    assert done.stdout == given


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("slurm: {partitoin: gpu}", "slurm.partitoin"),
        ("slurm: {partition: 'gpu\\n#SBATCH --uid=0'}", "slurm.partition"),
        ('slurm: {options: ["--mail-type=FAIL\\nrm -rf /"]}', "slurm.options.0"),
        ("slurm: {options: [mail]}", "slurm.options.0"),
        ("slurm: {memory: lots}", "slurm.memory"),
        ("slurm: {container: {engine: docker, image: x}}", "slurm.container.engine"),
    ],
)
def test_a_bad_site_is_a_line_for_each_field(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(content)
    with pytest.raises(ConfigError) as error:
        read_site(tmp_path / "site.yaml")
    assert any(told in problem for problem in error.value.problems)
    assert not any("\n" in problem for problem in error.value.problems)


def test_no_slurm_here_is_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sinfo here") as error:
        SCHEDULER.check(specified(PLAIN), PLAIN)
    assert len(error.value.problems) == 1


def test_slurm_takes_no_percent_in_the_names_of_logs() -> None:
    with pytest.raises(ConfigError, match="--run=/shared/50%"):
        SCHEDULER.check(replace(specified(PLAIN), run=Path("/shared/50%")), PLAIN)


@pytest.mark.parametrize(
    ("limit", "hours"),
    [
        ("infinite", float("inf")),
        ("3-00:00:00", 72),
        ("1-12", 36),
        ("1:30:00", 1.5),
        ("30:00", 0.5),
        ("n/a", float("inf")),
    ],
)
def test_hours_of_a_limit(limit: str, hours: float) -> None:
    assert hours_in(limit) == hours


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:h100:8(S:0-1),nvme:2", 8),
        ("nvme:2,gpu:a100:2,gpu:t4:1", 3),
        ("shard:gpu:4", 0),
    ],
)
def test_gpus_of_a_node(resources: str, gpus: int) -> None:
    assert gpus_in(resources) == gpus


def test_what_slurm_says_is_a_line() -> None:
    words = "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified\n"
    assert in_a_line(words) == "invalid partition specified: nope; Invalid partition name specified"


def test_tries_are_those_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    lines = ["began 9 0 none 1 n1,n2", "ended 9 0 none 2 1", "began 12 0 none 3 n1,n2", "ended 12 0 step-000004 4 75"]
    lines += ["began 12 1 step-000004 5 n2,n3", "began 12 2 step"]  # half a line: somebody was killed
    (tmp_path / "launch" / "ppo.tries").write_text("\n".join(lines))
    assert read_tries(tmp_path, "ppo", "12") == Tries(2, "n2,n3", "step-000004", None)
    assert read_tries(tmp_path, "ppo", "9") == Tries(1, "n1,n2", "none", 1)
    assert read_tries(tmp_path, "sft", "12") == Tries()


FAILED = [StageState("sft", "complete", ""), StageState("reward", "failed", "")]


@pytest.mark.parametrize(
    ("job", "tries", "cancelled", "state", "told"),
    [
        (QueuedJob("RUNNING", "", "n[1-2]"), Tries(1, "n1,n2"), False, "running", "job 12 on n[1-2]"),
        (QueuedJob("RUNNING", "", "n[1-2]"), Tries(2, "n1,n2"), False, "running", "job 12 on n[1-2], try 2"),
        (QueuedJob("PENDING", "Resources"), Tries(), False, "waiting", "job 12: Resources"),
        (QueuedJob("PENDING", "Dependency"), Tries(), False, "waiting", "job 12: Dependency, reward"),
        (
            QueuedJob("PENDING", "BeginTime"),
            Tries(1, "n1", "step-000004", 75),
            False,
            "waiting",
            "starts it again in a moment, after try 1 with exit code 75, at checkpoint step-000004",
        ),
        (QueuedJob("CANCELLED"), Tries(), False, "stopped", "job 12 never began, for reward is not complete"),
        (QueuedJob("forgotten"), Tries(), False, "stopped", "job 12 never began, for reward is not complete"),
        (QueuedJob("CANCELLED"), Tries(), True, "stopped", "job 12: cancelled; rlhf resume goes on"),
        (
            QueuedJob("FAILED"),
            Tries(1, "n1", "step-000004", 75),
            True,
            "stopped",
            "job 12: cancelled, at checkpoint step-000004; rlhf resume goes on",
        ),
        (
            QueuedJob("FAILED"),
            Tries(1, "n1", "none", 2),
            False,
            "failed",
            "exit code 2, which another try does not mend",
        ),
        (QueuedJob("FAILED"), Tries(4, "n1", "none", 137), False, "failed", "job 12: exit code 137, try 4"),
        (QueuedJob("TIMEOUT"), Tries(1, "n1"), False, "failed", "job 12: TIMEOUT"),
        (QueuedJob("COMPLETED"), Tries(1, "n1", "none", 0), False, "stopped", "have changed since"),
        (QueuedJob("forgotten"), Tries(1, "n1"), False, "lost", "job 12: Slurm has forgotten it"),
    ],
)
def test_state(job: QueuedJob, tries: Tries, cancelled: bool, state: str, told: str) -> None:
    found = state_of("ppo", IDS, {"12": job}, tries, FAILED, cancelled)
    assert (found.state, told in found.told) == (state, True), found


def test_behind_the_stage_that_runs_in_one_allocation() -> None:
    ids, jobs = dict.fromkeys(IDS, "7"), {"7": QueuedJob("RUNNING", "", "n1")}
    running = state_of("sft", ids, jobs, Tries(1, "n1"), [], False)
    behind = state_of("reward", ids, jobs, Tries(), [running], False)
    assert (running.state, behind.state, behind.told) == ("running", "waiting", "job 7, behind sft")


def test_what_was_never_submitted_is_lost() -> None:
    assert state_of("ppo", {"sft": "10"}, {}, Tries(), [], False).state == "lost"
