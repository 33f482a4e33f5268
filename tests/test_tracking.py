"""What every tracker shares: the stage's own files, what others are shown of a recipe, servers that are away."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import pytest
from away import AWAY, away
from tracked import MANIFEST, log_steps, open_at

from launch.commands.sync import recipe_to_sync, sync
from rlhf.config import Recipe
from rlhf.errors import ArtifactError, ConfigError, RLHFError
from rlhf.recipe import load_recipe
from rlhf.tracking import Trackers
from rlhf.tracking.entries import Entries, Entry, Line, Table
from rlhf.tracking.jsonl import JsonlTracker
from rlhf.tracking.public import flattened, public
from rlhf.tracking.sender import Feeder, settle
from rlhf.tracking.services import Job
from rlhf.tracking.sync import destination
from stages import preflight

TINY = Path(__file__).parent / "recipes" / "tiny.yaml"
MILLISECOND = 1e-3
CLOSE_SECONDS = 1.0
BUSY_SECONDS = 10.0  # what ending a process may take on a busy machine; W&B alone would wait for 90


def senders() -> list[psutil.Process]:
    """Processes that send what this one tracks; it may have other children, of tests before."""
    return [child for child in psutil.Process().children() if "rlhf.tracking.sender" in child.cmdline()]


def test_every_line_is_strict_json_whatever_the_figures_are(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"loss/policy": float("nan"), "policy/grad_norm": float("inf"), "objective/kl": 0.5})
    tracker.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    figures = json.loads(line, parse_constant=refuse)
    assert (figures["step"], figures["objective/kl"]) == (1, 0.5)
    assert figures["loss/policy"] is figures["policy/grad_norm"] is None


def test_tables_are_parquet_with_all_rows(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    rows = [{"prompt": "p", "score": 1.5}, {"prompt": "ü\n", "score": -2.0}]
    tracker.table(7, "held-out", rows)
    tracker.close()
    assert pyarrow.parquet.read_table(tmp_path / "samples" / "held-out-000007.parquet").to_pylist() == rows


def shown(entries: Entries, everything: bool = False) -> list[tuple[str, int]]:
    return [(type(entry).__name__, entry.step) for entry in entries.take(everything)]


def test_entries_come_once_by_step_and_whole(tmp_path: Path) -> None:
    files, entries = JsonlTracker(tmp_path), Entries(tmp_path)
    assert shown(entries) == []
    files.log(1, {"a": 1.0})
    files.table(2, "held-out", [{"score": 1.0}])  # before the line of its step
    assert shown(entries) == [("Line", 1)]
    files.log(2, {"a": float("nan")})
    files.log(2, {"b": 2.0})
    files.table(3, "held-out", [{"score": 2.0}])
    files.file.write('{"step": 3, "ti')  # a line on its way
    files.file.flush()
    assert shown(entries) == [("Line", 2), ("Line", 2), ("Table", 2)]
    files.file.write('me": 1.5, "a": null}\n')
    files.file.flush()
    line, table = entries.take()
    assert isinstance(line, Line) and (line.number, line.time) == (3, 1.5) and math.isnan(line.figures["a"])
    assert isinstance(table, Table) and table.rows() == [{"score": 2.0}]
    files.table(9, "last", [{"score": 2.0}])
    assert shown(entries) == []
    assert shown(entries, everything=True) == [("Table", 9)]
    files.close()


def test_others_are_shown_no_secret() -> None:
    recipe = {
        "reward": {"use": "https://me:pass@host:8000/score?token=abc&batch=3"},
        "path": "s3://bucket/a@b?X-Amz-Signature=99",
        "data": [{"path": "votes.jsonl"}],
        "steps": 3,
    }
    seen = public(recipe)
    assert seen["reward"]["use"] == "https://***@host:8000/score?token=***&batch=3"
    assert seen["path"] == "s3://bucket/a@b?X-Amz-Signature=***"
    assert (seen["data"], seen["steps"]) == (recipe["data"], 3)
    assert dict(flattened(seen))["data.0.path"] == "votes.jsonl"


def test_paths_of_parameters_are_those_of_overrides() -> None:
    paths = dict(flattened(Recipe().model_dump()))
    assert paths["ppo.kl.coef"] == 0.05 and paths["data.comparisons.0.path"] == "toy"
    assert len(paths) == len(list(flattened(Recipe().model_dump())))


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://me:pass@host:5000", "holds a user name or a password"),
        ("https://token@host", "holds a user name or a password"),
        ("sqlite:///mlflow.db", "is of no known kind"),
        ("databricks://profile", "is of no known kind"),
    ],
)
def test_an_address_of_mlflow_that_cannot_be_used_is_one_line(uri: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(TINY, [f"tracking.mlflow.uri={uri}"])
    (line,) = caught.value.problems
    assert line.startswith("override: tracking.mlflow.uri") and problem in line
    assert "pass" not in line.replace("password", "").replace("PASSWORD", "") and "token@" not in line


def test_a_tracker_whose_package_is_missing_is_said_before_any_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(TINY, ["tracking.tensorboard=true", "tracking.mlflow={uri: here}"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        preflight.check(recipe, ["ppo"], lambda stage: 1)
    assert [line.partition(":")[0] for line in caught.value.problems] == ["tracking.tensorboard", "tracking.mlflow"]
    assert all("in the clone: pip install -c constraints.txt -e '.[" in line for line in caught.value.problems)


@pytest.mark.parametrize("how", [*AWAY[:2], *(pytest.param(how, marks=pytest.mark.services) for how in AWAY[2:])])
def test_a_server_that_is_away_costs_nothing(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    said: list[str] = []
    with away(how) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        services = ["tracking.wandb.mode=online", f"tracking.mlflow={{uri: '{address}'}}"]
        tracker = open_at(tmp_path / "ppo", [*services, f"tracking.close_seconds={CLOSE_SECONDS}"], said=said)
        (sender,) = senders()
        seconds = []
        for step in range(200):
            started = time.perf_counter()
            tracker.log(step, {"objective/kl": 1.0})
            seconds.append(time.perf_counter() - started)
        log_steps(tracker, 200, 202)
        tracker.result(MANIFEST)
        while len(sender.children()) == 0 and sender.is_running():  # W&B's own process: libraries are loaded
            time.sleep(0.01)
        family = [sender, *sender.children(recursive=True)]
        started = time.monotonic()
        tracker.close()
        took = time.monotonic() - started
    assert sorted(seconds)[len(seconds) // 2] < MILLISECOND
    assert took < CLOSE_SECONDS + BUSY_SECONDS, took
    assert [line.partition(":")[0] for line in said] == ["tracking.wandb", "tracking.mlflow"]
    assert all(f"`rlhf sync {tmp_path}` sends it" in line and "\n" not in line for line in said)
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert len((tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()) == 205


class Stuck:
    """A service that answers until the end, and then hangs."""

    name, remote = "stuck", True

    def __init__(self) -> None:
        self.entries = 0
        self.released = threading.Event()

    def open(self) -> None:
        pass

    def send(self, entries: Sequence[Entry]) -> None:
        self.entries += len(entries)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        self.released.wait(60)


def test_the_end_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    files = JsonlTracker(tmp_path)
    log_steps(Trackers([files]), 1, 4)
    files.close()
    service = Stuck()
    feeder = Feeder(service, tmp_path)
    feeder.start()
    started = time.monotonic()
    feeder.close(None)
    job = Job(directory=str(tmp_path), stage="ppo", recipe={}, tracking={}, seconds=0.5)
    assert settle([feeder], job) == {"stuck": "the server does not answer"}
    assert 0.5 < time.monotonic() - started < 5
    assert service.entries == 8  # six lines and two tables
    service.released.set()
    feeder.join(10)
    assert feeder.problem is None


def test_with_all_off_there_is_no_other_process(tmp_path: Path) -> None:
    tracker = open_at(tmp_path / "ppo", [])
    log_steps(tracker, 1, 2)
    assert senders() == []
    tracker.close()


def test_a_forked_child_ends_no_tracker(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = open_at(tmp_path / "ppo", ["tracking.tensorboard=true"], said=said)
    child = multiprocessing.get_context("fork").Process(target=tracker.close)
    child.start()
    child.join(10)
    assert child.exitcode == 0
    log_steps(tracker, 1, 2)
    tracker.close()
    assert said == []
    assert (tmp_path / "ppo" / "tensorboard" / "sent").is_file()


def test_what_sends_dies_with_its_stage_and_with_nothing_less(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).parent / "tracked.py"), str(tmp_path / "ppo"), "2"]
    process = subprocess.Popen([*program, "tracking.tensorboard=true"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    (sender,) = psutil.Process(process.pid).children()
    for number in (1, 2, 10, 15):  # what a terminal or a scheduler sends to the whole group of a stage
        sender.send_signal(number)
    time.sleep(0.5)
    assert sender.is_running() and sender.status() != psutil.STATUS_ZOMBIE
    process.kill()
    process.communicate()
    assert not psutil.wait_procs([sender], timeout=10)[1]


def test_a_sender_that_is_gone_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = open_at(tmp_path / "ppo", ["tracking.tensorboard=true"], said=said)
    (sender,) = senders()
    sender.kill()
    log_steps(tracker, 1, 2)
    tracker.result(MANIFEST)
    tracker.close()
    (line,) = said
    assert line.startswith("tracking: not everything was sent") and f"`rlhf sync {tmp_path}`" in line


def test_a_lone_stage_of_another_version_is_one_line(tmp_path: Path) -> None:
    recipe = load_recipe(TINY).model_dump(mode="json") | {"unheard_of": 1}
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "environment": {}, **MANIFEST, "recipe": recipe}))
    with pytest.raises(ArtifactError, match="its recipe is of another version .unheard_of: .*; send it with") as caught:
        recipe_to_sync(tmp_path, [])
    assert "\n" not in str(caught.value)


def test_where_things_are_sent_is_said_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(TINY, ["tracking.mlflow={uri: 'https://host:5000/base?team=ours'}"])
    monkeypatch.setenv("WANDB_BASE_URL", "https://me:hunter2@own-host")
    found = {service: destination(service, recipe, tmp_path) for service in ("wandb", "mlflow", "tensorboard")}
    assert found["mlflow"] == "https://host:5000/base" and found["tensorboard"] == f"{tmp_path}/tensorboard"
    assert found["wandb"] == "https://***@own-host"


def test_sync_without_a_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all stages together, and before anything is asked of a server."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "recipe.yaml").write_text("name: tiny\n")
    for stage in ("sft", "reward"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text('{"step": 1, "time": 0.0, "loss/sft": 1.0}\n')
    with pytest.raises(RLHFError) as raised:
        sync(tmp_path)
    assert raised.value.problems == (f"tracking.wandb: no key; set WANDB_API_KEY, then rlhf sync {tmp_path}",)
