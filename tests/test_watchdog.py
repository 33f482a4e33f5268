"""A watchdog that reads real files, which stand in for other ranks."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from standing_in import Others, beacon, waiting

from rlhf.beacons.record import RAISED, pid_namespace, write
from rlhf.beacons.watchdog import Post, Sight
from rlhf.config import Recipe, WatchdogConfig
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe


def test_warned_early_ended_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, 0, 2, monkeypatch)
    for second in range(25):
        assert others.beat(waiting(0, 57, second), beacon(1, 56, second)) is None
    (line,) = others.lines()  # once
    assert line.startswith("rank 1 of 2 on host1 (pid 101) stays in collect/score") and "after 300 s" in line
    assert others.beat(waiting(0, 57, 299), beacon(1, 56)) is None
    order = others.beat(waiting(0, 57, 300), beacon(1, 56))
    assert order.mine and "rank 1 of 2 on host1" in order.verdict and order.folder.startswith(f"{tmp_path}/hang/")
    others.beat(beacon(0, 58), beacon(1, 58))
    assert others.lines() == ["rank 1 went on after 7 s more"]


def test_after_an_announced_wait_one_is_warned_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, 0, 2, monkeypatch)
    for waited, since in ((250, 0.0), (269, 19.0)):
        assert others.beat(waiting(0, 57, waited), beacon(1, 56, unannounced_seconds=since)) is None
    assert others.lines() == []
    assert others.beat(waiting(0, 57, 310), beacon(1, 56, unannounced_seconds=60.0)) is None
    (line,) = others.lines()
    assert "rank 0 waits for it in all_reduce number 57 since 310 s" in line
    assert others.beat(waiting(0, 57, 549), beacon(1, 56, unannounced_seconds=299.0)) is None
    assert others.beat(waiting(0, 57, 550), beacon(1, 56, unannounced_seconds=300.0)) is not None


def test_before_training_only_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, 0, 2, monkeypatch)
    assert others.beat(waiting(0, 57, 4000), beacon(1, 56, phase="evaluate", loading=True)) is None
    assert len(others.lines()) == 1
    for _ in range(299):
        assert others.beat(beacon(0)) is None
    assert others.beat(beacon(0), seconds=2) is not None  # but silence is silence


def test_our_own_absence_is_nobodys_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, 0, 2, monkeypatch)
    others.beat(beacon(0), beacon(1))
    assert others.beat(beacon(0), seconds=4000) is None
    assert others.lines() == []
    for _ in range(20):
        others.beat(beacon(0))
    assert "has given no sign for 20 s" in others.lines()[0]


def test_the_last_rank_takes_over_and_then_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = beacon(1, ranks=4, state=RAISED, word="ValueError: no")
    for rank, before in ((3, (0,)), (2, (0, 3))):
        folder = tmp_path / str(rank)
        folder.mkdir()
        others = Others(folder, rank, 4, monkeypatch)
        first = [beacon(each, ranks=4) for each in before]
        write(folder, replace(ended, count=1))
        for _ in range(10):
            assert others.beat(beacon(rank, ranks=4), *first) is None  # theirs to decide
        orders = [others.beat(beacon(rank, ranks=4)) for _ in range(12)]
        assert orders[:4] == [None] * 4
        assert orders[-1].mine and "ValueError: no" in orders[-1].verdict


def test_of_very_many_ranks_some_are_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, 0, 100, monkeypatch)
    healthy = [beacon(rank, ranks=100) for rank in range(1, 100) if rank != 80]
    for _ in range(8):
        assert others.beat(beacon(0, ranks=100), *healthy, beacon(80, ranks=100)) is None
    assert others.lines() == []
    for _ in range(24):
        assert others.beat(beacon(0, ranks=100), *healthy) is None
    (line,) = others.lines()
    assert line.startswith("rank 80 of 100 on host80 (pid 180) has given no sign for 2")


def test_between_two_looks_nobody_is_silent(tmp_path: Path) -> None:
    sight = Sight(Post("ppo", tmp_path, tmp_path, "e", 0, 2))
    write(tmp_path, beacon(1, count=1))
    sight.look([1], time.monotonic() - 100)
    assert [seen.quiet for seen in sight.observed()] == [0.0]
    sight.look([1], time.monotonic())
    assert [round(seen.quiet) for seen in sight.observed()] == [100]


def test_an_order_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, 1, 3, monkeypatch)
    assert others.beat(beacon(1, ranks=3), beacon(0, ranks=3), beacon(2, ranks=3)) is None
    order = others.beat(beacon(1, ranks=3), beacon(0, ranks=3, state="aborted", verdict="v", folder="f"))
    assert (order.verdict, order.folder, order.mine) == ("v", "f", False)


def test_beacons_of_another_execution_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, 0, 2, monkeypatch)
    old = replace(beacon(1, state=RAISED, word="ValueError: of yesterday"), execution="f")
    for _ in range(30):
        assert others.beat(beacon(0), old) is None
    (line,) = others.lines()
    assert line.startswith("rank 1 has no beacon, and is not watched")


def test_a_process_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from socket import gethostname

    import psutil

    me = psutil.Process()
    alive = beacon(1, host=gethostname(), namespace=pid_namespace(), pid=os.getpid(), born=me.create_time())
    others = Others(tmp_path, 0, 2, monkeypatch)
    others.beat(beacon(0), alive)
    assert [others.beat(beacon(0)) for _ in range(5)] == [None] * 5
    others.beat(beacon(0), replace(alive, born=1.0, namespace=7))  # in a container of the same host name
    assert [others.beat(beacon(0)) for _ in range(5)] == [None] * 5
    others.beat(beacon(0), replace(alive, born=1.0))  # the id of another process now
    orders = [others.beat(beacon(0)) for _ in range(4)]
    assert orders[:2] == [None] * 2 and "was killed without a word" in orders[-1].verdict


def test_the_recipe_says_when() -> None:
    assert Recipe().watchdog == WatchdogConfig(warn_seconds=20, abort_seconds=300)
    assert load_recipe("demo", ["watchdog=null"]).watchdog is None
    assert "watchdog" not in Recipe().fingerprint_fields()
    with pytest.raises(ConfigError, match="abort_seconds=10 is before warn_seconds=20; use warn_seconds=10 or less"):
        load_recipe("demo", ["watchdog.abort_seconds=10"])
