"""What a set of beacons means: who has ended, who is silent, who stands apart, who waits for whom. Pure.

Two ranks of a healthy stage are seldom at the same collective at the same moment. What tells a hang is that one has
begun a collective, that nothing has come of it for a while, and that another one of the same group has not begun it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlhf.beacons.record import COMPLETE, LOST, RAISED, REFUSED, RUNNING, STOPPED, Beacon

GONE_SECONDS = 3.0  # without a sign, after which a process that is not there has ended
UNCLEAR_SECONDS = 5.0  # without a sign, after which what a beacon says is not what its rank does
ABSENT = "absent"  # of an outcome: there is no beacon
ENDED, KILLED, SILENT, APART, MISMATCH, TOGETHER = "ended", "killed", "silent", "apart", "mismatch", "together"


@dataclass(frozen=True)
class Observed:
    """A beacon as somebody sees it who has watched for a while."""

    beacon: Beacon
    quiet: float  # seconds for which it has not changed, by the clock of who watches: those of hosts differ
    gone: bool = False  # its process is known to have ended
    frozen: bool = False  # or to have been stopped by a signal

    @property
    def unannounced(self) -> float:
        """Seconds for which it has been in no wait that it had announced: 0 within one, endless if there was none."""
        beacon = self.beacon
        if beacon.patience_seconds:
            return max(self.quiet - beacon.patience_seconds, 0.0)
        return math.inf if beacon.unannounced_seconds is None else beacon.unannounced_seconds + self.quiet


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a stage; `text` is a line for people."""

    kind: str
    ranks: tuple[int, ...]
    seconds: float  # that count: others may have waited for longer, while it was announced
    text: str
    loading: bool = False  # in a part of the stage in which ranks may be far apart
    said: bool = False  # by the rank itself, to people

    @property
    def certain(self) -> bool:
        """Whether the stage cannot go on, so that there is nothing to wait for."""
        return self.kind in (ENDED, KILLED)


def diagnose(seen: Sequence[Observed], warn: float) -> list[Finding]:
    """What is wrong, the cause before what follows from it; empty for a stage that runs, or has ended well.

    warn: seconds from which on a wait or a silence is told.
    """
    ended = sorted((each for each in seen if each.beacon.state in (RAISED, REFUSED)), key=lambda each: each.beacon.time)
    found = [_ended(each.beacon) for each in ended]
    running = [each for each in seen if each.beacon.state == RUNNING]
    killed = [each for each in running if each.gone and each.quiet >= GONE_SECONDS]
    found += [_killed(each) for each in killed]
    running = [each for each in running if each not in killed]
    silent = [each for each in running if each.quiet >= warn]
    found += [_silent(each, seen) for each in silent]
    if not silent:
        found += apart(running, warn)
    return found


def apart(running: Sequence[Observed], warn: float) -> list[Finding]:
    """Ranks that others wait for, and collectives that never come back."""
    beacons = [each.beacon for each in running]
    if not any(beacon.wait and _still(beacon) >= warn for beacon in beacons):
        return []  # as in each healthy stage: what follows compares every rank with every other
    found = []
    for each in running:
        others = [other for other in beacons if _waits_for(other, each.beacon)]
        if not others or each.beacon.wait:
            continue  # nobody waits for it, or it waits itself: somebody else is the cause, or what is between them
        waited = min(_still(other) for other in others)
        seconds = min(waited, each.unannounced)
        if seconds >= warn and each.quiet < UNCLEAR_SECONDS:
            text = f"{each.beacon.name} stays {each.beacon.place}{_at(each.beacon)}; {_waits(others, waited)}"
            found.append(Finding(APART, (each.beacon.rank,), seconds, text, each.beacon.loading))
    return found or list(_mismatches(running, warn)) or list(_together(running, warn))


def _waits_for(one: Beacon, other: Beacon) -> bool:
    """Whether one rank is in a collective that the other has not begun."""
    return one.wait is not None and other.groups.get(one.wait.group, (one.wait.number, 0.0))[0] < one.wait.number


def _still(beacon: Beacon) -> float:
    """Seconds since a rank has begun its last collective."""
    return min((age for _, age in beacon.groups.values()), default=0.0)


def _counted(*seen: Observed) -> float:
    """Seconds for which some ranks have all stood still, none of them in a wait that it had announced."""
    return min((min(_still(each.beacon), each.unannounced) for each in seen), default=0.0)


def _mismatches(running: Sequence[Observed], warn: float) -> Iterator[Finding]:
    """Two ranks that are in different collectives under the same number of the same group."""
    for first, second in itertools.combinations(running, 2):
        one, other = first.beacon, second.beacon
        mine, theirs = one.wait, other.wait
        if mine is None or theirs is None or (mine.group, mine.number) != (theirs.group, theirs.number):
            continue
        seconds = _counted(first, second)
        if mine.operation != theirs.operation and seconds >= warn:
            text = (
                f"{other.name} is in {theirs.operation} {theirs.sizes}{_at(other)}, where {one.name} is in "
                f"{mine.operation} {mine.sizes}{_at(one)}, both as number {mine.number}, {other.place}, since "
                f"{min(_still(one), _still(other)):.0f} s: they will never meet"
            )
            yield Finding(MISMATCH, (one.rank, other.rank), seconds, text, one.loading or other.loading)
            return


def _together(running: Sequence[Observed], warn: float) -> Iterator[Finding]:
    """All ranks in a collective that does not come back, though none is missing.

    Where a connection is lost, one may be a collective further than the other: it has got what it needed in time. And
    sizes of one collective differ where one rank sends to all. What they have announced excuses nothing: none works.
    """
    beacons = [each.beacon for each in running]
    seconds = min(map(_still, beacons), default=0.0)
    inside = [one for one in beacons if one.wait and not any(_waits_for(one, other) for other in beacons)]
    if len(beacons) < 2 or seconds < warn or not inside or not all(beacon.wait for beacon in beacons):
        return
    first = inside[0]
    if len({(one.wait.group, one.wait.number) for one in beacons if one.wait}) == 1:
        who = f"all {len(beacons)} ranks are in {first.wait}, {first.place}"
    else:
        who = f"all {len(beacons)} ranks wait, {first.name} in {first.wait}, {first.place}, which all have begun"
    text = f"{who}, since {seconds:.0f} s and none comes out: look at the network and the devices between them"
    yield Finding(TOGETHER, tuple(beacon.rank for beacon in beacons), seconds, text, first.loading)


def _ended(beacon: Beacon) -> Finding:
    verb = "raised an error" if beacon.state == RAISED else "ended"
    text = f"{beacon.name} {verb} {beacon.place}{_at(beacon)}: {beacon.word}"
    return Finding(ENDED, (beacon.rank,), 0.0, text, said=beacon.state == REFUSED)


def _killed(each: Observed) -> Finding:
    beacon = each.beacon
    text = (
        f"{beacon.name} was killed without a word (SIGKILL, or out of memory?), last seen {beacon.place}{_at(beacon)}"
    )
    return Finding(KILLED, (beacon.rank,), each.quiet, text)


def _silent(each: Observed, seen: Sequence[Observed]) -> Finding:
    beacon = each.beacon
    why = " (it is stopped by a signal, SIGSTOP)" if each.frozen else ""
    others = [other.beacon for other in seen if other is not each and _waits_for(other.beacon, beacon)]
    waits = f"; {_waits(others, min(map(_still, others)))}" if others else ""
    silence = f"{beacon.name} has given no sign for {each.quiet:.0f} s{why}"
    text = f"{silence}, last seen {beacon.place}{_at(beacon)}{waits}"
    return Finding(SILENT, (beacon.rank,), each.quiet, text)


def _at(beacon: Beacon) -> str:
    doing = f", where it {beacon.patience}" if beacon.patience else ""
    return f"{doing}, at {beacon.where}" if beacon.where else doing


def _waits(others: Sequence[Beacon], seconds: float) -> str:
    """Who waits, in what."""
    first = next((other for other in others if other.wait), others[0])
    collective = str(first.wait) if first.wait else "a collective"
    return (
        f"{named([o.rank for o in others])} wait{'s' * (len(others) == 1)} for it in {collective} since {seconds:.0f} s"
    )


def named(ranks: Iterable[int]) -> str:
    """Some ranks for people: rank 3; ranks 0 to 7; ranks 1, 5."""
    ordered = sorted(ranks)
    if len(ordered) == 1:
        return f"rank {ordered[0]}"
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"ranks {ordered[0]} to {ordered[-1]}"
    return f"ranks {', '.join(map(str, ordered))}"


def outcome(seen: Sequence[Observed], warn: float) -> tuple[str, str]:
    """What has become of an execution: a word, and a line for people.

    complete, running, stopped, hang (ended by the watchdog, by others, or still there), ended, killed, lost.
    """
    states = {each.beacon.state for each in seen}
    if states == {COMPLETE}:
        return COMPLETE, "complete"
    if verdict := next((each.beacon.verdict for each in seen if each.beacon.verdict), ""):
        folder = next(each.beacon.folder for each in seen if each.beacon.verdict)
        return "hang", f"ended by the watchdog: {verdict}; stacks in {folder}/"
    findings = diagnose(seen, warn)
    if findings and findings[0].kind == KILLED:  # perhaps because it hung: whoever killed it did not say
        alive = [Observed(each.beacon, 0.0) for each in seen if each.beacon.state == RUNNING]
        if before := apart(alive, warn):
            return "hang", f"{before[0].text}; then killed without a word"
        return KILLED, all_of(findings)
    if findings:
        return (ENDED if findings[0].certain else "hang"), findings[0].text
    if LOST in states:
        lost = next(each.beacon for each in seen if each.beacon.state == LOST)
        return LOST, f"{lost.name} lost the others {lost.place}: {lost.word}"
    if STOPPED in states and RUNNING not in states:
        word = next(each.beacon.word for each in seen if each.beacon.state == STOPPED)
        return STOPPED, f"stopped by {word}; the same command goes on from there"
    furthest = max((each.beacon for each in seen), key=lambda beacon: beacon.step)
    return RUNNING, f"running {furthest.place}"


def all_of(findings: Sequence[Finding]) -> str:
    """The first finding, and whom else it is true of."""
    also = [rank for finding in findings[1:] if finding.kind == findings[0].kind for rank in finding.ranks]
    return f"{findings[0].text}; so {'was' if len(also) == 1 else 'were'} {named(also)}" if also else findings[0].text
