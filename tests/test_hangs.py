"""A hang, an error and a death planted in one rank of real processes: named, ended, told afterwards, and gone on from.

`make test` plants an error; `make test-services` the others. `tests/soak/test_hangs.py` does so under each strategy and
launcher.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hangs import RAISES, Run, beacon, plant, processes_in
from interruption import assert_same, figures
from running import rlhf

NAMED_SECONDS = 30.0  # from the hang to its name, at the default of watchdog.warn_seconds
GONE_SECONDS = 15.0  # from the verdict to the end of every process; see docs/hangs.md
SOON = "watchdog={warn_seconds: 20, abort_seconds: 24}"
Start = Callable[..., Run]


@pytest.fixture
def start(tiny_run: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts runs, and ends what is left of them."""
    begun: list[Run] = []

    def begin(strategy: str, *overrides: str, what: str = "", **options: bool) -> Run:
        folder = tmp_path / "planted"
        folder.mkdir(exist_ok=True)
        if what:
            plant(folder, what)
        begun.append(Run(tiny_run, folder, strategy, *overrides, **options))
        return begun[-1]

    yield begin
    for run in begun:
        run.close()


def planted(run: Run) -> None:
    """Wait until the planted thing has begun."""
    run.until(lambda: not (run.folder / "planted").exists(), 180)


def diagnosed(run: Run) -> str:
    """What `rlhf doctor` says, in one line, the same to people and to programs."""
    done = rlhf("doctor", "tiny", folder=run.folder)
    assert done.returncode == 1, done.stdout + done.stderr
    verdict: str = json.loads(rlhf("doctor", "tiny", "--json", folder=run.folder).stdout)["verdict"]
    assert done.stderr == ""
    return verdict


def named_in_time(run: Run, *words: str) -> str:
    """The watchdog's warning of rank 1, which comes in time and says where it is and who waits."""
    took = run.until(lambda: "warning: rank 1 of 2" in run.said(), NAMED_SECONDS)
    (line,) = re.findall(r"^ppo: warning: (rank 1 of 2 .*)$", run.said(), re.M)
    print(f"named after {took:.1f} s: {line}")
    host = beacon(run.stage, 1)["host"]
    for word in (f"on {host} (pid", "collect/score (step 2)", "rank 0 waits for it in all_gather number", *words):
        assert word in line, line
    warned = (run.stage / ".beacons" / "warnings.txt").read_text()
    assert line in warned
    return str(line)


def ended_in_time(run: Run, code: int, seconds: float = 60.0) -> Path:
    """The stage is ended, every process with it, and the evidence is there; its folder."""
    run.until(lambda: (run.stage / "hang").is_dir(), seconds)
    took = run.until(lambda: not processes_in(run.folder), GONE_SECONDS)
    print(f"all gone {took:.1f} s after the verdict")
    assert run.wait(5) == code, run.said()
    (folder,) = (run.stage / "hang").iterdir()
    verdict = (folder / "verdict.txt").read_text().strip()
    assert run.said().count(verdict) == 1
    assert f"stacks in {folder.relative_to(run.folder)}/" in run.said()
    assert verdict in diagnosed(run)
    entries = json.loads((folder / "rank-00000.flight-recorder.json").read_text())[0]["entries"]
    assert entries[-1]["profiling_name"] == "gloo:all_gather" and not entries[-1]["retired"]
    assert "in gather_objects" in (folder / "rank-00000.stacks.txt").read_text()
    return folder


def goes_on(run: Run, start: Start, strategy: str) -> None:
    """The same command ends the stage, with the figures of one that nobody disturbed."""
    again = start(strategy)
    assert again.wait(240) == 0, again.said()
    assert "going on from runs/tiny/ppo/checkpoints/step-000001" in again.said()
    assert rlhf("doctor", "tiny", folder=run.folder).returncode == 0
    whole = run.stage.parent / "disturbed"
    run.stage.rename(whole)
    once_more = start(strategy)
    assert once_more.wait(240) == 0, once_more.said()
    assert "going on from" not in once_more.said()
    assert len(figures(whole)) == 6  # three steps, and evaluations before, within and after
    assert_same(whole, run.stage)


@pytest.mark.timeout(600)
def test_a_rank_that_raises_is_named_by_the_others_and_seen_once(start: Start) -> None:
    run = start("fsdp", what="raise")
    assert run.wait(240) == 1
    said = run.said()
    assert said.count("Traceback") == 1 and said.count(f"\n{RAISES}\n") == 1, said
    (line,) = re.findall(r"^error: (.*)$", said, re.M)
    place = r"rank 1 of 2 on \S+ \(pid \d+\) raised an error in update \(step 2\), at \S*planted.py:\d+ in backward"
    assert re.match(f"ppo: {place}: {RAISES}; its traceback stands above", line), line
    assert re.match(f"{place}: {RAISES}$", diagnosed(run))
    assert not processes_in(run.folder)
    assert beacon(run.stage, 0)["state"] == "lost"
    assert "gloo" in beacon(run.stage, 0)["word"].lower()


@pytest.mark.services
@pytest.mark.timeout(1200)
def test_a_hang_is_named_and_ended_and_the_same_command_goes_on(start: Start) -> None:
    run = start("ddp", SOON, what="hang")
    planted(run)
    named_in_time(run, "stays in", "planted.py", "in score")
    live = diagnosed(run)
    assert "rank 1 of 2" in live and "rank 0 waits for it in all_gather" in live
    folder = ended_in_time(run, 70)
    assert "in score" in (folder / "rank-00001.stacks.txt").read_text()
    goes_on(run, start, "ddp")


@pytest.mark.services
@pytest.mark.timeout(600)
def test_a_frozen_rank_is_named_and_ended_under_torchrun(start: Start) -> None:
    run = start("fsdp", SOON, what="freeze", torchrun=True)
    planted(run)
    named_in_time(run, "has given no sign", "stopped by a signal, SIGSTOP")
    ended_in_time(run, 1)  # the agent's own code
    assert beacon(run.stage, 1)["state"] == "running"  # it never had a word


@pytest.mark.services
@pytest.mark.timeout(600)
@pytest.mark.parametrize("torchrun", [False, True])
def test_a_killed_rank_is_named(torchrun: bool, start: Start) -> None:
    run = start("ddp", what="die", torchrun=torchrun)
    planted(run)
    assert run.wait(60) == (1 if torchrun else 137)
    (line,) = re.findall(r"^error: (.*)$", run.said(), re.M)
    named = r"rank 1 of 2 on \S+ \(pid \d+\) was killed without a word .*, last seen in collect/score \(step 2\)"
    assert re.match(f"ppo: {named}", line), line
    assert re.match(named, diagnosed(run))
    assert "Connection closed" not in run.said()
    assert not processes_in(run.folder)


class Slow(BaseHTTPRequestHandler):
    """A reward server that takes its time, once, when one of two ranks asks about a part of a step's responses."""

    slow = 1  # responses; 0 once it was slow
    training = False
    seconds = 10.0
    lock = threading.Lock()

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            size, kind = len(body["responses"]), type(self)
            kind.training |= size == 8  # behind the held-out responses of before the first step
            slow = kind.training and size == kind.slow
            kind.slow = 0 if slow else kind.slow
        if slow:
            time.sleep(self.seconds)
        content = json.dumps({"scores": [len(text) % 7 / 7 for text in body["responses"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Silence."""


@pytest.mark.services
@pytest.mark.timeout(600)
def test_a_slow_rank_that_says_so_is_left_alone(start: Start) -> None:
    """The wait for a reward server announces itself: longer than abort_seconds, it neither ends nor warns."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    impatient = "watchdog={warn_seconds: 3, abort_seconds: 6}"
    run = start("ddp", impatient, f"reward.use=http://127.0.0.1:{server.server_port}")
    assert run.wait(240) == 0, run.said()
    server.shutdown()
    server.server_close()
    assert Slow.slow == 0 and "warning: rank" not in run.said(), run.said()


@pytest.mark.services
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_slow_rank_that_says_nothing_is_warned_of_and_goes_on(start: Start) -> None:
    run = start("ddp", "watchdog={warn_seconds: 3, abort_seconds: 60}", what="slow 10")
    assert run.wait(240) == 0, run.said()
    assert "warning: rank 1 of 2" in run.said() and "warning: rank 1 went on after" in run.said()
    assert not (run.stage / "hang").exists()
