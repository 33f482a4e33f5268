"""How the end of a stage is told where telling it is what fails, and by which exit code."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch.distributed as dist
from rich.console import Console
from running import ROOT
from standing_in import LIMITS, beacon

from launch.commands.outcome import examine, show
from launch.local import LocalStage
from rlhf.beacons.diagnosis import Finding
from rlhf.beacons.keeper import HUNG, Channel, Keeper
from rlhf.beacons.record import BEACONS, COMPLETE, LOST, RAISED, Beacon, left_by, pid_namespace, read, write
from rlhf.beacons.watchdog import Post
from rlhf.config import Recipe
from rlhf.store.artifact import PARTIAL
from rlhf.store.unfinished import hold
from stages import watching
from stages.signals import Signals

CLOSED = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer"
# A process that is told to end, and cannot tell people: whoever it tells raises, or its output goes nowhere.
ENDS = """
import sys
from pathlib import Path
from rlhf.beacons import keeper
from rlhf.beacons.watchdog import Limits, Order, Post

def problem(line):
    if sys.argv[2] == "raises":
        raise SystemError(line)

keeper.LONGEST_ABORT_SECONDS, keeper.LINGER_SECONDS = 2.0, 0.1
folder = Path(sys.argv[1])
if sys.argv[2] == "blocks":
    sys.stdout = open(1, "w", buffering=1 << 20, closefd=False)
    sys.stdout.write("x" * 500_000)  # more than a pipe holds
kept = keeper.Keeper(Post("ppo", folder, folder, "e", 0, 2), Limits(20, 300), keeper.Channel(problem, problem))
kept.abort(Order("rank 1 stays", str(folder / "hang" / "now"), mine=True))
"""


@pytest.mark.parametrize("how", ["raises", "blocks"])
def test_the_watchdog_ends_its_process_whatever_fails(how: str, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDS, str(tmp_path), how], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.wait(60) == HUNG
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / "hang" / "now" / "verdict.txt").read_text() == "rank 1 stays\n"
    last = read(tmp_path, 0)
    assert last is not None and (last.state, last.verdict) == ("aborted", "rank 1 stays")


def keeper_in(folder: Path, warnings: list[str]) -> Keeper:
    return Keeper(Post("ppo", folder, folder, "e", 0, 2), LIMITS, Channel(warnings.append, warnings.append))


def test_a_last_word_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    keeper = keeper_in(tmp_path, warnings)

    def fails(*arguments: Any) -> Any:
        raise KeyError("pg_status")

    monkeypatch.setattr(keeper.traffic, "look", fails)
    keeper.renew()
    keeper.end(RAISED, "ValueError: no", ValueError("no"))
    last = read(tmp_path, 0)
    assert last is not None and (last.state, last.word, last.groups) == (RAISED, "ValueError: no", {})
    (line,) = warnings
    assert line == "collectives cannot be read, so that ranks apart are not found: KeyError('pg_status')"
    other = keeper_in(tmp_path, warnings)
    monkeypatch.setattr("rlhf.beacons.keeper.write", fails)
    other.end(COMPLETE)
    assert warnings[1:] == ["the beacon has no last word: KeyError: 'pg_status'"]


def test_which_errors_follow_from_the_end_of_another_rank() -> None:
    class Own(RuntimeError):
        pass

    assert watching.last_word(RuntimeError(CLOSED), True)[0] == LOST
    assert watching.last_word(dist.DistBackendError("remote process exited"), True)[0] == LOST
    assert watching.last_word(RuntimeError(CLOSED), False)[0] == RAISED
    assert watching.last_word(Own("my nccl is no group"), True)[0] == RAISED
    assert watching.last_word(RuntimeError("shapes differ"), True)[0] == RAISED


@pytest.mark.parametrize("ended", [False, True])
def test_who_lost_nobody_has_raised(ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names gloo; it is told as the cause unless another rank has ended before."""
    monkeypatch.setattr(watching, "world_size", lambda: 2)
    monkeypatch.setattr(watching, "CAUSE_SECONDS", 0.3)
    context: Any = SimpleNamespace(recipe=Recipe(), stage="ppo", output=tmp_path, execution="e", signals=Signals())
    (tmp_path / BEACONS).mkdir()
    write(tmp_path / BEACONS, beacon(1, state=RAISED if ended else "running", word="ValueError: no"))
    told: list[Finding] = []
    monkeypatch.setattr(watching, "tell", lambda cause, post: told.append(cause))
    with pytest.raises(watching.Consequence if ended else RuntimeError), watching.watched(context):
        raise RuntimeError(CLOSED)
    last = read(tmp_path / BEACONS, 0)
    assert last is not None and last.state == (LOST if ended else RAISED) and last.word.endswith(CLOSED)
    assert [finding.ranks for finding in told] == ([(1,)] if ended else [])


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("kill -9 $$", "sleep 0.3; exit 70", 70),  # a frozen one, killed by the one that has decided
        ("exit 70", "sleep 0.3; kill -9 $$", 70),
        ("exit 1", "sleep 0.3; exit 70", 1),  # an error comes before what followed from it
        ("kill -9 $$", "sleep 0.3; exit 1", 137),
        ("kill -9 $$", "sleep 0.3; exit 2", 2),
        ("exit 1", "sleep 0.3; exit 74", 74),  # a full disk, and who lost the connection to it
    ],
)
def test_the_code_of_a_stage_of_two(first: str, second: str, code: int) -> None:
    stage = LocalStage(["sh", "-c", f"if [ $RANK = 1 ]; then {first}; fi; {second}"], 2)
    assert stage.wait(60, print).code == code


def test_doctor_tells_a_stage_that_is_starting(tmp_path: Path) -> None:
    (tmp_path / "ppo" / PARTIAL).mkdir(parents=True)
    lock = hold(tmp_path / "ppo")
    found = examine(tmp_path, None)
    assert found.state == "running" and found.verdict.startswith("is starting")
    lock.close()
    assert examine(tmp_path, None).state == "absent"


def test_doctor_shows_brackets_as_they_are(tmp_path: Path) -> None:
    (tmp_path / BEACONS).mkdir()
    ended: Beacon = beacon(0, state=COMPLETE, where="[red]/mine.py:4 in [/score]", time=time.time())
    write(tmp_path / BEACONS, ended)
    console = Console(file=StringIO(), width=200)
    show(examine(tmp_path, None), console)
    assert isinstance(console.file, StringIO) and "[red]/mine.py:4 in [/score]" in console.file.getvalue()


def ended_now() -> dict[str, Any]:
    """What a beacon says of a process of this machine that has this moment ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = psutil.Process(process.pid).create_time()
    process.communicate(b"\n")
    place = {"host": socket.gethostname(), "namespace": pid_namespace()}
    return {**place, "pid": process.pid, "born": born, "time": time.time()}


def test_doctor_names_a_rank_that_was_killed_this_moment(tmp_path: Path) -> None:
    (tmp_path / BEACONS).mkdir()
    write(tmp_path / BEACONS, beacon(0, state=LOST, word=CLOSED, time=time.time()))
    write(tmp_path / BEACONS, beacon(1, **ended_now()))
    found = examine(tmp_path, None)
    assert (found.state, found.verdict.partition(" on ")[0]) == ("killed", "rank 1 of 2")


def test_a_last_word_left_since_we_read_is_no_death_without_one(tmp_path: Path) -> None:
    before = beacon(1, **ended_now())
    write(tmp_path, before)
    assert left_by(tmp_path, before) == (before, True)
    after = replace(before, state=COMPLETE)
    write(tmp_path, after)
    assert left_by(tmp_path, before) == (after, False)
