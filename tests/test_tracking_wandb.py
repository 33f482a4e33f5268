"""Weights & Biases for real: offline by what a run's file holds, online against a stand-in for the server."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from interruption import EVERY_STEP, kill_tree, lines_of, manifest, own_copy, start, wait_for
from running import TINY, rlhf
from tracked import MANIFEST, cut_back, log_steps, open_at
from wandb_records import OfflineRun, read_offline_run
from wandb_server import Run, WandbServer

from rlhf.store.artifact import file_digest

OFFLINE, ONLINE = "tracking.wandb.mode=offline", "tracking.wandb.mode=online"


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("_", "perf/", "samples/"))} for row in rows]


def test_an_interrupted_stage_leaves_one_run_without_a_double_or_a_gap(tiny_run: Path, tmp_path: Path) -> None:
    whole = own_copy(tiny_run, tmp_path / "whole", ["sft", "reward"])
    assert rlhf("ppo", str(TINY), OFFLINE, folder=tmp_path / "whole").returncode == 0
    undisturbed = read_offline_run(whole / "ppo")
    assert [row["rlhf/step"] for row in undisturbed.rows] == [0, 1, 2, 3]
    assert ["objective/kl" in row for row in undisturbed.rows] == [False, True, True, True]
    assert ["eval/scores" in row for row in undisturbed.rows] == [True, False, True, True]

    killed = own_copy(tiny_run, tmp_path / "killed", ["sft", "reward"])
    process = start("ppo", str(TINY), OFFLINE, EVERY_STEP, folder=tmp_path / "killed")
    assert wait_for(lambda: lines_of(killed / "ppo" / "metrics.jsonl") >= 4, process)
    kill_tree(process)
    identity = (killed / "ppo" / "wandb" / "id").read_text()
    assert rlhf("ppo", str(TINY), OFFLINE, EVERY_STEP, folder=tmp_path / "killed").returncode == 0
    run = read_offline_run(killed / "ppo")
    assert run.id == identity == (killed / "ppo" / "wandb" / "id").read_text()
    assert compared(run.rows) == compared(undisturbed.rows)
    assert run.ended
    assert_complete(run, killed)


def assert_complete(run: OfflineRun, directory: Path) -> None:
    """Config, samples, links to what came before and what was made are there, each once."""
    assert (run.group, run.job_type) == ("tiny", "ppo")
    assert run.config["ppo"]["steps"] == 3 and run.config["sft"]["learning_rate"] == 5e-3
    tables = [row["samples/held-out.path"] for row in run.rows if "samples/held-out.path" in row]
    assert len(tables) == 3
    for name in tables:
        table = json.loads((run.directory / "files" / name).read_text())
        assert {"step", "prompt", "response", "score", "kl"} <= set(table["columns"]) and len(table["data"]) == 64
    assert run.used == ["tiny-prompts", "tiny-sft", "tiny-reward"]
    assert [name for name in run.made if "held-out" not in name] == ["tiny-ppo"]
    made = run.artifacts["tiny-ppo"]
    content = manifest(directory / "ppo")
    assert (made.type, set(made.aliases)) == ("model", {"latest", content["fingerprint"][:12]})
    assert {entry.path: entry.digest for entry in made.manifest.contents} == content["checksums"]
    assert all(entry.ref == f"file://{directory / 'ppo' / entry.path}" for entry in made.manifest.contents)
    metadata = json.loads(made.metadata)
    assert metadata["results"] == content["results"] and metadata["inputs"] == content["inputs"]
    own = manifest(directory / "sft")["checksums"]  # what a stage uses is what the other has made, by its checksums
    assert {entry.path: entry.digest for entry in run.artifacts["tiny-sft"].manifest.contents} == own
    assert any({"memory_percent", "proc.memory.rssMB"} <= names for names in run.system)


def test_models_are_uploaded_where_the_recipe_says_so(tmp_path: Path) -> None:
    weights = tmp_path / "sft" / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    made = {**MANIFEST, "stage": "sft", "checksums": {"model/model.safetensors": file_digest(weights)}}
    (tmp_path / "sft" / "manifest.json").write_text(json.dumps(made))
    stage, said = tmp_path / "ppo", list[str]()
    tracker = open_at(stage, [OFFLINE, "tracking.wandb.models=true"], said=said)
    log_steps(tracker, 1, 1)
    (stage / "model").mkdir()
    (stage / "model" / "model.safetensors").write_bytes(b"other")
    tracker.result(MANIFEST)
    tracker.close()
    assert said == []
    run = read_offline_run(stage)
    assert (run.used, run.made) == (["tiny-prompts", "tiny-sft"], ["tiny-ppo"])
    for name, path in (("tiny-sft", weights), ("tiny-ppo", stage / "model" / "model.safetensors")):
        (entry,) = run.artifacts[name].manifest.contents
        assert (entry.path, entry.local_path, entry.ref) == ("model/model.safetensors", str(path), "")
        assert entry.digest == base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    server = WandbServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def only_run(server: WandbServer) -> Run:
    (run,) = server.runs.values()
    return run


def steps(run: Run) -> list[int]:
    return [row["rlhf/step"] for row in run.history]


def used(server: WandbServer, run: Run) -> set[str]:
    return {server.artifacts[artifact]["name"] for artifact in run.used}


@pytest.mark.services
def test_online_a_killed_stage_goes_on_as_the_same_run(server: WandbServer, tmp_path: Path) -> None:
    stage = tmp_path / "ppo"
    program = [sys.executable, str(Path(__file__).parent / "tracked.py"), str(stage), "4", ONLINE]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert wait_for(lambda: any(len(run.history) >= 3 for run in server.runs.values()), process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2  # the one that sends, and W&B's own
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    before = steps(only_run(server))
    assert before == list(range(1, len(before) + 1))

    cut_back(stage, 2)
    said: list[str] = []
    tracker = open_at(stage, [ONLINE], resumed=True, said=said)
    log_steps(tracker, 3, 6)
    tracker.result(MANIFEST)
    tracker.close()
    run = only_run(server)
    assert said == []
    assert steps(run) == [1, 2, 3, 4, 5, 6] and run.received == 6
    assert run.complete
    assert run.attributes["groupName"] == "tiny" and run.attributes["jobType"] == "ppo"
    assert used(server, run) == {"tiny-prompts"}
    assert {a["name"] for a in server.artifacts.values() if a["type"] == "model"} == {"tiny-ppo"}
    assert sorted(name for name in run.files if "held-out_" in name)[0].startswith("media/table/samples/held-out_2_")
    assert (stage / "wandb" / "sent").is_file()


def sync(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return rlhf("sync", str(directory), *options, folder=directory.parent)


@pytest.mark.soak
@pytest.mark.services
def test_what_was_offline_is_uploaded_later_and_once(server: WandbServer, tiny_run: Path, tmp_path: Path) -> None:
    run_directory = own_copy(tiny_run, tmp_path, ["sft", "reward", "ppo"])
    (run_directory / "recipe.yaml").write_text((tiny_run / "recipe.yaml").read_text())
    stage = run_directory / "ppo"
    done = sync(run_directory, OFFLINE)  # nothing of the run was tracked: the sync makes up for it
    assert done.returncode == 0, done.stderr
    assert "ppo: wandb: sent" in done.stdout
    assert len(server.runs) == 3 and steps(server.runs[(stage / "wandb" / "id").read_text()]) == [0, 1, 2, 3]
    received = {run.name: run.received for run in server.runs.values()}
    assert "ppo: wandb: has everything" in sync(run_directory, OFFLINE).stdout
    (stage / "wandb" / "sent").unlink()  # as if nobody had noted it
    assert sync(stage, OFFLINE).returncode == 0
    assert steps(server.runs[(stage / "wandb" / "id").read_text()]) == [0, 1, 2, 3]
    assert {run.name for run in server.runs.values()} == received.keys()
    run = server.runs[(stage / "wandb" / "id").read_text()]
    assert used(server, run) == {"tiny-prompts", "tiny-sft", "tiny-reward"}
    made = {artifact["name"]: artifact["by"] for artifact in server.artifacts.values() if artifact["type"] == "model"}
    owners = {f"tiny-{name}": (run_directory / name / "wandb" / "id").read_text() for name in ("sft", "reward", "ppo")}
    assert made == owners  # a stage uses the version that the other has made, and makes none of its own


@pytest.mark.services
def test_a_server_that_comes_back_gets_the_rest_and_nothing_twice(server: WandbServer, tmp_path: Path) -> None:
    said: list[str] = []
    stage = tmp_path / "ppo"
    tracker = open_at(stage, [ONLINE, "tracking.close_seconds=1"], said=said)
    log_steps(tracker, 1, 3)
    deadline = time.monotonic() + 60
    while not (server.runs and len(only_run(server).history) >= 2):  # W&B sends a step when the next one begins
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.close()
    log_steps(tracker, 4, 6)
    tracker.close()
    (line,) = said
    assert line.startswith("tracking.wandb: not everything was sent (") and f"`rlhf sync {tmp_path}`" in line
    back = WandbServer(server.port)
    back.runs, back.artifacts = server.runs, server.artifacts
    (tmp_path / "recipe.yaml").write_text(TINY.read_text())
    done = rlhf("sync", str(stage), ONLINE, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(back)
    assert steps(run) == [1, 2, 3, 4, 5, 6] and run.received == 6
    assert "ppo: wandb: has everything" in rlhf("sync", str(stage), ONLINE, folder=tmp_path).stdout
    back.close()
    assert run.received == 6
