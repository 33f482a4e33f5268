"""The processes of one stage on one node: an agent and what it has started, and servers beside it."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from launch.clusters.agents import ATTEMPT, PORT, RANK_PREFIX
from launch.clusters.itinerary import Leg, Server
from launch.clusters.job import BAD_INPUT
from launch.local import follow_parent, free_port, gpus_here, stage_environment
from rlhf.beacons.keeper import HUNG
from stages.problems import AWAY, CODES
from stages.signals import RESUMABLE

STARTS_SECONDS = 3600.0  # until a server has loaded its model
FALLS = 10  # times that a server ends without having answered, until it is given up
AGAIN_SECONDS = 5.0  # until a server that has ended is started again
ENDS_SECONDS = 10.0


def adopt_orphans() -> None:
    """Become the parent of what descendants leave behind, so that it is found and ended with them."""
    if sys.platform == "linux":
        set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


class Agent:
    """What starts the processes of a stage on this node, once."""

    def __init__(self, leg: Leg, node: int, attempt: int, log: IO[bytes], direct: bool) -> None:
        self.leg = leg
        self.direct = direct  # signals go to the processes themselves, for the agent would cut their time short
        self.folder = Path(tempfile.mkdtemp(prefix="rlhf-"))
        (self.folder / "codes").mkdir()
        command = shlex.split(leg.agents[node].replace(ATTEMPT, str(attempt)).replace(PORT, str(free_port())))
        environment = {
            **stage_environment(leg.processes),
            **on_this_node(leg.environment),
            CODES: str(self.folder / "codes"),
        }
        environment["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = RANK_PREFIX.format(rank="${rank}")
        environment["TMPDIR"] = str(self.folder)  # of torchrun's own copies of what is logged
        self.process = _start(command, environment, log)

    def ended(self) -> int | None:
        """The exit code of the stage's processes here, as far as it is known; None while they run.

        Bad input ends them at once, whatever else the agent waits for.
        """
        codes = self._codes()
        if self.process.poll() is None and BAD_INPUT not in codes:
            return None
        if self.process.poll() is None:
            self.stop(ENDS_SECONDS)
        if BAD_INPUT in codes:
            return BAD_INPUT
        if self.process.returncode == 0:
            return 0
        for code in (AWAY, HUNG):
            if code in codes:
                return code
        if codes and set(codes) == {RESUMABLE}:
            return RESUMABLE
        return self.process.returncode if self.process.returncode > 0 else 128 - self.process.returncode

    def _codes(self) -> list[int]:
        found = []
        for path in (self.folder / "codes").glob("*"):
            with suppress(OSError, ValueError):
                found.append(int(path.read_text(encoding="utf-8")))
        return found

    def stop(self, seconds: float) -> None:
        """End it behind a checkpoint, or after seconds at once."""
        for process in (self._workers() if self.direct else []) or [psutil.Process(self.process.pid)]:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def _workers(self) -> list[psutil.Process]:
        """The processes of the stage."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                line = process.cmdline()
                if ("-m", f"stages.{self.leg.stage}") in zip(line, line[1:], strict=False):
                    found.append(process)
        return found

    def close(self, spared: Iterable[int]) -> None:
        """End all that is left of it; spared: processes that belong to something else."""
        keep = set(spared)
        for pid in list(keep):
            with suppress(psutil.Error):
                keep |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        for process in psutil.Process().children(recursive=True):
            if process.pid not in keep:
                with suppress(psutil.Error):
                    process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Running:
    """A server that is started again whenever it ends."""

    def __init__(self, server: Server, log: IO[bytes]) -> None:
        self.server = server
        self.log = log
        self.begun = time.monotonic()  # since when it should answer
        self.started = self.begun
        self.falls = 0
        self.healthy = False
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.started = time.monotonic()
        environment = {**os.environ, **on_this_node(self.server.environment)}
        return _start(shlex.split(self.server.command), environment, self.log)

    def look(self) -> None:
        """Start it again if it has ended; note whether it answers."""
        if self.process.poll() is not None:
            if self.healthy:
                self.healthy, self.begun = False, time.monotonic()
            if time.monotonic() - self.started > AGAIN_SECONDS:
                with suppress(ProcessLookupError):  # what it has left holds its port and its GPUs
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.falls += 1
                self.process = self._start()
        elif not self.healthy:
            self.healthy = answers(self.server)
            self.falls = 0 if self.healthy else self.falls

    @property
    def late(self) -> bool:
        """Whether it should answer by now and has not."""
        return not self.healthy and (self.falls >= FALLS or time.monotonic() - self.begun > STARTS_SECONDS)

    def stop(self) -> None:
        """End it, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDS_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def on_this_node(environment: Mapping[str, str]) -> dict[str, str]:
    """GPUs by their numbers among those that this node gives us."""
    name, found = "CUDA_VISIBLE_DEVICES", dict(environment)
    numbers = found.get(name, "").split(",")
    if all(number.isdigit() for number in numbers) and found[name] != os.environ.get(name):  # that of the site is ours
        found[name] = gpus_here(map(int, numbers))
    return found


def answers(server: Server) -> bool:
    """Whether a server of this node answers: by its path for that, or in that it takes connections."""
    try:
        if server.health is None:
            socket.create_connection(("127.0.0.1", server.port), 1.0).close()
            return True
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{server.port}{server.health}", timeout=2.0) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def _start(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=dict(environment),
        start_new_session=True,
        preexec_fn=follow_parent(),
    )
