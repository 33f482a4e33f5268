"""What beacons say and what a set of them means: pure cases."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standing_in import PAIR, WORLD, beacon, waiting

from rlhf import beacons
from rlhf.beacons import collectives
from rlhf.beacons.collectives import ASIDE
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


def test_ranks_in_two_collectives_are_left_alone_while_they_have_announced_it() -> None:
    seen = waiting(0, 57, 30), waiting(1, 57, 25, "all_gather")
    assert kinds(*seen) == [(MISMATCH, (0, 1))]
    announced = replace(seen[0], patience_seconds=570.0, unannounced_seconds=0.0)
    assert (MISMATCH, (0, 1)) not in kinds(announced, seen[1])
    assert (MISMATCH, (0, 1)) not in kinds(seen[0], replace(seen[1], unannounced_seconds=19.0))
    assert kinds(seen[0], replace(seen[1], unannounced_seconds=21.0)) == [(MISMATCH, (0, 1))]


def test_silence_is_told_before_a_wait_for_the_silent() -> None:
    seen = [Observed(waiting(0, 57, 30), 0.0), Observed(beacon(1), 31.0, frozen=True)]
    (finding,) = diagnose(seen, 20)
    assert (finding.kind, finding.ranks) == (SILENT, (1,))
    assert "no sign for 31 s (it is stopped by a signal, SIGSTOP), last seen in collect/score (step 3)" in finding.text
    assert "rank 0 waits for it in all_reduce number 57 since 30 s" in finding.text
    assert kinds(waiting(0, 57, 30), Observed(beacon(1), 10.0)) == []  # soon one of the two, but which?
    assert kinds(waiting(0, 57, 30), Observed(waiting(1, 57, 30), 31.0)) == [(SILENT, (1,))]  # not: all wait


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
    assert SIGNS.phase == "load" and SIGNS.unannounced(time.monotonic()) is None
    with beacons.phase("evaluate"):  # before the first step
        assert SIGNS.phase == "evaluate" and SIGNS.loading
    beacons.enter(beacons.EVALUATE)
    assert SIGNS.loading
    beacons.enter("train")
    assert not SIGNS.loading
    with pytest.raises(ValueError) as caught, beacons.phase("collect"), beacons.phase("score"):
        assert SIGNS.phase == "collect/score"
        raise ValueError
    assert SIGNS.phase == "train"
    assert getattr(caught.value, RAISED_IN) == "collect/score"
    with beacons.patient("asks", 50), beacons.patient("writes", 5):
        assert SIGNS.patience_left(time.monotonic())[0] == "asks"
        assert SIGNS.patience_left(time.monotonic() + 60) == ("", 0.0)
        assert SIGNS.unannounced(time.monotonic()) == 0.0
        assert SIGNS.unannounced(time.monotonic() + 60) == pytest.approx(10, abs=1)  # it has run out
    assert SIGNS.patience_left(time.monotonic()) == ("", 0.0)
    assert SIGNS.unannounced(time.monotonic() + 60) == pytest.approx(60, abs=1)  # it ended before it ran out


def test_a_collective_that_came_back_is_waited_in_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records as torch's recorder writes them: of the loop's own collective, and of a checkpoint's thread."""

    def record(own_retired: bool, aside_retired: bool) -> list[dict[str, Any]]:
        entries, status = [], {}
        for number, (group, retired) in enumerate({"default_pg": own_retired, ASIDE: aside_retired}.items()):
            known = {"retired": retired, "is_p2p": False, "state": "started", "input_sizes": [[1]]}
            known |= {"process_group": [str(number), group], "profiling_name": "gloo:all_reduce"}
            entries.append({**known, "collective_seq_id": 7})
            last = {"last_enqueued_collective": "7", "last_completed_collective": "7" if retired else "6"}
            status[str(number)] = last
        return [{"entries": entries, "pg_status": status}]

    def look(now: float, own_retired: bool, aside_retired: bool) -> Wait | None:
        monkeypatch.setattr(collectives, "recorded", lambda all_of_it: record(own_retired, aside_retired))
        return traffic.look(now)[1]

    monkeypatch.setattr(collectives, "numbers", lambda: {WORLD: 7})
    traffic = collectives.Traffic()
    assert look(0.0, own_retired=False, aside_retired=False) is None  # it has just begun
    assert look(3.0, own_retired=False, aside_retired=False) == Wait(WORLD, 7, "all_reduce", "[1]")
    assert look(4.0, own_retired=True, aside_retired=False) is None
    assert look(5.0, own_retired=True, aside_retired=True) is None
