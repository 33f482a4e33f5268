"""Run a stage on this machine: one process or several, their signals, and one exit code."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rlhf.beacons.keeper import HUNG
from rlhf.config import Recipe
from stages.lineage import used_by
from stages.problems import AWAY
from stages.signals import RECEIVED, RESUMABLE, STOP

BAD_INPUT = 2  # the exit code of a stage whose user can mend what is wrong
SMI_SECONDS = 30.0  # nvidia-smi takes some on a node of many GPUs that nobody uses
# How threads of the CPU wait for one another: asleep, so that those that spin hold up no machine with more processes
# than cores; but not at once, for little time passes between two products: these rounds take some 0.1 to 0.5 ms, by
# processor. Beside other busy processes that costs a tenth of a product's time.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}
AFTER_END_SECONDS = 5.0  # what the others get to end by themselves once one process of a stage has ended badly


def visible_gpus() -> int:
    """GPUs that a child process would see, asked without loading torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return len([gpu for gpu in listed.split(",") if gpu.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=SMI_SECONDS)
    except subprocess.TimeoutExpired:  # a driver that hangs would hang a stage as well; `rlhf doctor` says so
        return 0
    return sum(line.startswith("GPU ") for line in found.stdout.splitlines())


def gpus_here(numbers: Iterable[int]) -> str:
    """CUDA_VISIBLE_DEVICES of some GPUs, counted among those that CUDA_VISIBLE_DEVICES leaves us."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    given = [gpu.strip() for gpu in listed.split(",") if gpu.strip() not in ("", "-1")]
    return ",".join(given[number] if number < len(given) else str(number) for number in numbers)


def processes_of(recipe: Recipe, stage: str) -> int:
    """How many processes a stage gets here: as many as it says, or as many GPUs as its batch splits over."""
    if used_by(recipe, stage):
        return 1  # there is nothing to train
    parallelism = recipe.parallelism_of(stage)
    if parallelism.processes != "auto":
        return parallelism.processes
    batch = {"sft": recipe.sft.batch_size, "reward": recipe.reward.batch_size}.get(stage)
    processes = max(1, visible_gpus())
    while batch and batch % processes:
        processes -= 1
    return processes


def stage_environment(processes: int) -> dict[str, str]:
    """The environment of a stage: the machine's cores shared out, and no module picked up from the working folder."""
    environment = dict(os.environ)
    environment.pop("WANDB_SERVICE", None)  # our parent's would keep the run of a stage that was killed open
    # `data` and `launch` are common names: a folder of that name in the working directory must not win.
    environment["PYTHONSAFEPATH"] = "1"
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if environment.setdefault("OMP_WAIT_POLICY", WAITING["OMP_WAIT_POLICY"]).lower() == "passive":
        environment.setdefault("GOMP_SPINCOUNT", WAITING["GOMP_SPINCOUNT"])
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return environment


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a stage meet, and which of its nodes this is."""

    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"  # of the first node
    port: int | None = None  # on it; None: one that is free here


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    code: int  # 0, or that of the process that failed first; 128 + n after signal n
    signal: signal.Signals | None  # what stopped it
    problems: tuple[str, ...]  # lines that its processes had to say, each once


class LocalStage:
    """The processes of one stage. Each leads a group of its own, so that nothing it starts outlives it.

    They meet by the variables that torchrun sets, and are started without its agent: an agent neither hands on the
    exit code of a stage nor lets it finish a checkpoint before it ends itself.
    """

    def __init__(
        self, command: Sequence[str], processes: int, held: Sequence[int] = (), meeting: Meeting | None = None
    ) -> None:
        self.signal: signal.Signals | None = None
        self.killed = False
        self.deadline = float("inf")
        self.folder = Path(tempfile.mkdtemp(prefix="rlhf-"))
        environment = {**stage_environment(processes), "RLHF_ERRORS": str(self.folder / "errors")}
        environment[RECEIVED] = str(self.folder / "signal")
        meeting = meeting or Meeting()
        meeting = meeting if meeting.port else replace(meeting, port=free_port())
        self.workers: list[subprocess.Popen[bytes]] = []
        for rank in range(processes):
            alone = processes * meeting.nodes == 1
            own = environment if alone else {**environment, **rank_environment(rank, processes, meeting)}
            self.workers.append(
                subprocess.Popen(command, env=own, start_new_session=True, pass_fds=held, preexec_fn=follow_parent())
            )

    def wait(self, grace_seconds: float, say: Callable[[str], None]) -> Outcome:
        """Wait for all processes, handing on the signals that come to us.

        A signal to stop lets the stage write a checkpoint; who sends a second one, or waits longer than the grace
        period, ends it at once. SIGUSR1 asks for a checkpoint.
        """

        def forward(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGUSR1:
                self.send(signal.SIGUSR1)
            elif self.signal is None:
                self.signal = signal.Signals(number)
                self.deadline = time.monotonic() + grace_seconds
                (self.folder / "signal").write_text(self.signal.name, encoding="utf-8")
                say(f"{self.signal.name}: ending behind a checkpoint; once more ends at once")
                self.send(signal.SIGTERM)  # a SIGINT while it loads its libraries would print their stack
            else:
                self.kill()

        previous = {number: signal.signal(number, forward) for number in (*STOP, signal.SIGUSR1)}
        try:
            code = self._code(grace_seconds, say)
            return Outcome(code, self.signal, self._problems())
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.send(signal.SIGKILL)  # whatever the stage left behind in its groups
            shutil.rmtree(self.folder, ignore_errors=True)

    def _code(self, grace_seconds: float, say: Callable[[str], None]) -> int:
        """Wait for the end; the exit code of the process that failed first, 75 for all that a signal stopped.

        That of the watchdog wins over signals: it ends those that cannot react.
        """
        failed: int | None = None
        while None in [worker.poll() for worker in self.workers]:  # each is asked, whichever comes first
            bad = [worker.returncode for worker in self.workers if worker.returncode]
            if bad:  # the others may wait for it in vain
                patience = grace_seconds if all(map(self._stopped, bad)) else AFTER_END_SECONDS
                self.deadline = min(self.deadline, time.monotonic() + patience)
            failed = self._first(bad) if failed is None else failed
            if time.monotonic() > self.deadline and not self.killed:
                if self.signal and failed is None:
                    say(f"no checkpoint within checkpoint.grace_seconds={grace_seconds:g}; ended at once")
                self.kill()
            time.sleep(0.05)
        codes = [worker.returncode for worker in self.workers]
        if self.killed and self.signal and failed is None and any(code == -signal.SIGKILL for code in codes):
            return 128 + self.signal
        if BAD_INPUT in codes:  # the others end in whatever a collective raises whose other side has gone
            return BAD_INPUT
        if AWAY in codes:
            return AWAY
        if any(map(self._stopped, codes)) and HUNG not in codes:
            return RESUMABLE
        failed = failed or self._first(codes) or 0
        if failed < 0 and HUNG in codes:  # the watchdog kills frozen processes, and ends its own only then
            return HUNG
        return failed if failed >= 0 else 128 - failed

    def _first(self, codes: Sequence[int]) -> int | None:
        """Of codes that were found at one moment the one that the others follow from: a signal that nobody handled."""
        return min((code for code in codes if code and not self._stopped(code)), default=None)

    def _stopped(self, code: int) -> bool:
        """Whether an exit code says that the process ended because it was asked to."""
        return code == RESUMABLE or (self.signal is not None and code == -signal.SIGTERM)

    def send(self, number: int) -> None:
        """Send a signal to the process group of each process that still runs; SIGKILL also to what they left."""
        for worker in self.workers:
            if number == signal.SIGKILL or worker.poll() is None:
                try:
                    os.killpg(worker.pid, number)
                except ProcessLookupError:
                    continue

    def kill(self) -> None:
        """End everything at once."""
        self.killed = True
        self.send(signal.SIGKILL)

    def _problems(self) -> tuple[str, ...]:
        path = self.folder / "errors"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return tuple(dict.fromkeys(lines))


def stage_command(stage: str, recipe: Path, run: Path, *options: str) -> list[str]:
    """The command line of each process of a stage."""
    return [sys.executable, "-m", f"stages.{stage}", "--recipe", str(recipe), "--run-dir", str(run), *options]


def rank_environment(rank: int, processes: int, meeting: Meeting) -> dict[str, str]:
    """What tells one process of several who it is and where the others are. rank: among the processes of its node."""
    return {
        "RANK": str(meeting.node * processes + rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(meeting.nodes * processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": str(meeting.node),
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
    }


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def follow_parent() -> Callable[[], None] | None:
    """Have the kernel tell a child to stop when we die, even by SIGKILL; None where the kernel cannot."""
    if sys.platform != "linux":
        return None
    library, parent = ctypes.CDLL(None), os.getpid()
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG

    def follow() -> None:
        library.prctl(set_parent_death_signal, int(signal.SIGTERM))
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(128 + signal.SIGTERM)
        # Until the stage has its own handlers, which its libraries take seconds to reach.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    return follow
