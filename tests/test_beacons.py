"""What beacons mean: pure cases, and a watchdog that reads real files which stand in for other ranks."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf import beacons
from rlhf.beacons.diagnosis import APART, ENDED, KILLED, MISMATCH, SILENT, TOGETHER, Observed, diagnose, named, outcome
from rlhf.beacons.own import RAISED_IN, SIGNS
from rlhf.beacons.record import (
    COMPLETE,
    LOST,
    RAISED,
    SIZE,
    STOPPED,
    Beacon,
    Wait,
    decode,
    encode,
    path_of,
    read,
    read_all,
    write,
)
from rlhf.beacons.watchdog import Limits, Post, Watchdog
from rlhf.config import Recipe, WatchdogConfig
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe

WORLD, PAIR = "0:gloo", "3:gloo"
LIMITS = Limits(warn=20, abort=300)


def beacon(rank: int, number: int = 56, seconds: float = 0.0, ranks: int = 2, **fields: Any) -> Beacon:
    """A rank that has begun so many collectives, the last of them so long ago."""
    values: dict[str, Any] = {"host": f"host{rank}", "pid": 100 + rank, "phase": "collect/score", "step": 3}
    values |= {"born": 0.0, "groups": {WORLD: (number, seconds)}}
    return Beacon(execution="e", rank=rank, ranks=ranks, **values | fields)


def waiting(rank: int, number: int, seconds: float, operation: str = "all_reduce", **fields: Any) -> Beacon:
    """A rank that is in a collective."""
    return beacon(rank, number, seconds, **{"wait": Wait(WORLD, number, operation, "[4]"), **fields})


def kinds(*seen: Beacon | Observed, warn: float = 20) -> list[tuple[str, tuple[int, ...]]]:
    observed = [each if isinstance(each, Observed) else Observed(each, 0.0) for each in seen]
    return [(finding.kind, finding.ranks) for finding in diagnose(observed, warn)]


def test_a_rank_that_others_wait_for_is_named_with_place_and_collective() -> None:
    late = beacon(1, 56, 31, where="mine.py:4 in score")
    (finding,) = diagnose([Observed(waiting(0, 57, 30), 0.0), Observed(late, 0.0)], 20)
    assert (finding.kind, finding.ranks, finding.seconds) == (APART, (1,), 30)
    assert finding.text == (
        "rank 1 of 2 on host1 (pid 101) stays in collect/score (step 3), at mine.py:4 in score; rank 0 waits for it in "
        "all_reduce number 57 since 30 s"
    )


def test_ranks_of_a_healthy_stage_are_not_apart() -> None:
    assert kinds(waiting(0, 57, 19), beacon(1, 56, 19)) == []  # not for long
    assert kinds(beacon(0, 57, 100), beacon(1, 56, 100)) == []  # nobody is in a collective: both compute
    assert kinds(waiting(0, 57, 100), waiting(1, 57, 5)) == []  # it has just come
    assert kinds(beacon(0, 57, 100)) == []
    assert kinds(waiting(0, 57, 30), beacon(1, 56, 30), warn=31) == []


def test_who_waits_itself_is_not_the_cause() -> None:
    """Ranks 2 and 3 are a pair: 3 computes, 2 waits for 3 in the pair's group, 0 and 1 for both in the world's."""
    pair = {WORLD: (56, 40.0), PAIR: (9, 30.0)}
    second = beacon(2, ranks=4, groups=pair, wait=Wait(PAIR, 9, "all_gather"))
    third = beacon(3, ranks=4, groups={WORLD: (56, 40.0), PAIR: (8, 40.0)})
    assert kinds(waiting(0, 57, 30), waiting(1, 57, 30), second, third) == [(APART, (3,))]


def test_an_announced_wait_is_legal_until_it_is_over() -> None:
    late = beacon(1, 56, 40, patience="asks http://judge", patience_seconds=100.0)
    assert kinds(waiting(0, 57, 40), late) == []
    assert kinds(waiting(0, 57, 40), replace(late, patience_seconds=0.0)) == [(APART, (1,))]
    # A frozen rank has announced nothing for the time since it froze.
    assert kinds(waiting(0, 57, 140), Observed(late, 101.0)) == [(SILENT, (1,))]


def test_silence_is_told_before_a_wait_for_the_silent() -> None:
    seen = [Observed(waiting(0, 57, 30), 0.0), Observed(beacon(1), 31.0, frozen=True)]
    (finding,) = diagnose(seen, 20)
    assert (finding.kind, finding.ranks) == (SILENT, (1,))
    assert "no sign for 31 s (it is stopped by a signal, SIGSTOP), last seen in collect/score (step 3)" in finding.text
    assert "rank 0 waits for it in all_reduce number 57 since 30 s" in finding.text
    assert kinds(waiting(0, 57, 30), Observed(beacon(1), 10.0)) == []  # soon one of the two, but which?


def test_two_collectives_under_one_number_never_meet() -> None:
    (finding,) = diagnose([Observed(waiting(0, 57, 30), 0), Observed(waiting(1, 57, 25, "all_gather"), 0)], 20)
    assert (finding.kind, finding.ranks, finding.seconds) == (MISMATCH, (0, 1), 25)
    assert "rank 1 of 2 on host1 (pid 101) is in all_gather [4], where rank 0" in finding.text
    assert kinds(waiting(0, 57, 30), waiting(1, 57, 25)) == [(TOGETHER, (0, 1))]


def test_where_a_connection_is_lost_no_rank_is_named() -> None:
    """Rank 1 has not got what rank 0 sent, which is in the next collective already; both announced a checkpoint."""
    writes: dict[str, Any] = {"patience": "writes a checkpoint", "patience_seconds": 570.0}
    seen = waiting(0, 58, 30, **writes), waiting(1, 57, 30, **writes)
    (finding,) = diagnose([Observed(each, 0.0) for each in seen], 20)
    assert (finding.kind, finding.ranks, finding.seconds) == (TOGETHER, (0, 1), 30)
    assert finding.text.startswith("all 2 ranks wait, rank 1 of 2 on host1 (pid 101) in all_reduce number 57, in ")
    assert kinds(seen[0], beacon(1, 57, 30, **writes)) == []  # it has come out, and works
    # What one sends and the other receives in a scatter has not one size.
    sends, receives = (waiting(rank, 57, 30, wait=Wait(WORLD, 57, "scatter", size)) for rank, size in enumerate("4 "))
    assert kinds(sends, receives) == [(TOGETHER, (0, 1))]


def test_the_end_of_a_rank_is_certain_and_comes_first() -> None:
    raised = beacon(1, state=RAISED, word="ValueError: no", time=5.0)
    later = beacon(2, state=RAISED, word="KeyError: 1", time=6.0)
    found = diagnose([Observed(each, 0.0) for each in (waiting(0, 57, 30), later, raised)], 20)
    assert [(finding.kind, finding.ranks, finding.certain) for finding in found] == [
        (ENDED, (1,), True),
        (ENDED, (2,), True),
    ]
    assert found[0].text.endswith("raised an error in collect/score (step 3): ValueError: no")
    assert kinds(waiting(0, 57, 30), Observed(beacon(1), 4.0, gone=True)) == [(KILLED, (1,))]
    assert kinds(waiting(0, 57, 3), Observed(beacon(1), 1.0, gone=True)) == []  # its last word may be on its way


def test_what_becomes_of_an_execution() -> None:
    def of(*seen: Observed) -> str:
        return outcome(seen, 20)[0]

    lost = Observed(waiting(0, 57, 3, state=LOST, word="gloo: Connection closed"), 0.0)
    gone = Observed(beacon(1, 56, 2), 500.0, gone=True)
    assert of(Observed(beacon(0, state=COMPLETE), 0), Observed(beacon(1, state=COMPLETE), 0)) == "complete"
    assert of(Observed(beacon(0), 0), Observed(beacon(1), 0)) == "running"
    assert of(Observed(beacon(0, state=STOPPED, word="SIGTERM"), 0)) == "stopped"
    assert of(lost, gone) == "killed"
    assert of(lost, Observed(beacon(1, state=RAISED, word="ValueError: no"), 0)) == "ended"
    assert of(lost) == "lost"
    hung = Observed(waiting(0, 57, 30), 500.0, gone=True)
    assert of(hung, gone) == "hang"  # somebody has killed it, but it hung
    assert outcome([hung, gone], 20)[1].endswith("since 30 s; then killed without a word")
    ended = beacon(0, state="aborted", verdict="rank 1 stays", folder="ppo/hang/x")
    assert outcome([Observed(ended, 0), gone], 20) == (
        "hang",
        "ended by the watchdog: rank 1 stays; stacks in ppo/hang/x/",
    )


def test_a_record_has_one_size_and_survives_long_texts() -> None:
    full = beacon(1, frames="é\n" * 9000 + "the end", word="w" * 500, wait=Wait(WORLD, 57, "all_reduce"), count=3)
    content = encode(full)
    assert len(content) == SIZE
    found = decode(content)
    assert found is not None and found.frames.endswith("the end")
    assert replace(found, frames="") == replace(full, frames="")
    many = decode(encode(beacon(1, count=1, groups={f"{n}:gloo": (n, 0.5) for n in range(3000)})))
    assert many is not None and many.groups == {}


def test_half_of_a_record_is_none(tmp_path: Path) -> None:
    old, new = encode(beacon(1, count=7, word="old")), encode(beacon(1, count=8, word="new"))
    for cut in (20, 300, len(new.rstrip()) - 3):
        path_of(tmp_path, 1).write_bytes(new[:cut] + old[cut:])
        assert read(tmp_path, 1) is None
    path_of(tmp_path, 1).write_bytes(b"")
    assert read(tmp_path, 1) is None
    assert read(tmp_path, 2) is None
    write(tmp_path, beacon(1, count=9))
    assert read(tmp_path, 1) == beacon(1, count=9)
    assert read_all(tmp_path) == [beacon(1, count=9)]


def test_named() -> None:
    assert [named(ranks) for ranks in ((3,), (7, 5, 6), (1, 5))] == ["rank 3", "ranks 5 to 7", "ranks 1, 5"]


def test_signs_of_the_main_thread() -> None:
    SIGNS.reset()
    assert SIGNS.phase == "load"
    beacons.enter("train")
    with pytest.raises(ValueError) as caught, beacons.phase("collect"), beacons.phase("score"):
        assert SIGNS.phase == "collect/score"
        raise ValueError
    assert SIGNS.phase == "train"
    assert getattr(caught.value, RAISED_IN) == "collect/score"
    with beacons.patient("asks", 50), beacons.patient("writes", 5):
        assert SIGNS.patience_left(time.monotonic())[0] == "asks"
        assert SIGNS.patience_left(time.monotonic() + 60) == ("", 0.0)
    assert SIGNS.patience_left(time.monotonic()) == ("", 0.0)


class Others:
    """Files that stand in for the other ranks of a stage, and the clock."""

    def __init__(self, folder: Path, rank: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now, self.counts = folder, 1000.0, dict.fromkeys(range(ranks), 0)
        monkeypatch.setattr("rlhf.beacons.watchdog.time.monotonic", lambda: self.now)
        self.watchdog = Watchdog(Post("ppo", folder, folder, "e", rank, ranks), LIMITS)
        self.rank = rank

    def beat(self, own: Beacon, *others: Beacon, seconds: float = 1.0) -> Any:
        """The others renew their beacons, then this rank looks."""
        self.now += seconds
        for each in others:
            self.counts[each.rank] += 1
            write(self.folder, replace(each, count=self.counts[each.rank]))
        return self.watchdog.look(own)

    def lines(self) -> list[str]:
        taken, self.watchdog.lines = self.watchdog.lines, []
        return taken


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


def test_before_training_only_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, 0, 2, monkeypatch)
    assert others.beat(waiting(0, 57, 4000), beacon(1, 56, phase="load")) is None
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
    alive = beacon(1, host=gethostname(), pid=os.getpid(), born=me.create_time())
    others = Others(tmp_path, 0, 2, monkeypatch)
    others.beat(beacon(0), alive)
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
