"""The commands that ssh runs on a node; what they answer is a line of JSON.

    python -P -m launch.clusters.node --run RUN --node N look     what the node has, and whether it sees RUN
                                                         start    its supervisor, which outlives the connection
                                                         stop     the same, and wait until it has ended
                                                         supervise

The first line of standard input is a JSON mapping of secrets, which become environment variables. Loads no torch.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from launch.clusters.itinerary import ITINERARY, read_itinerary
from launch.clusters.submission import FOLDER, LOGS
from launch.local import visible_gpus
from rlhf.errors import RLHFError

LOOK_SECONDS = 0.2


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m launch.clusters.node")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("verb", choices=("look", "start", "stop", "supervise"))
    options = parser.parse_args()
    run: Path = options.run
    try:
        if options.verb == "supervise":
            supervise(run, options.node)
            return
        os.environ.update(json.loads(sys.stdin.readline() or "{}"))
        answer = {"look": look, "start": start, "stop": stop}[options.verb](run, options.node)
        print(json.dumps(answer), flush=True)
    except (RLHFError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def look(run: Path, node: int) -> dict[str, object]:
    """What there is."""
    return {
        "host": socket.gethostname(),
        "gpus": visible_gpus(),
        "sees": digest(run),
        "busy": owner(run, node) is not None,
    }


def digest(run: Path) -> str:
    """Of what the launcher has written to the run directory; empty where it is not there."""
    try:
        return hashlib.sha256((run / FOLDER / ITINERARY).read_bytes()).hexdigest()
    except OSError:
        return ""


def start(run: Path, node: int) -> dict[str, object]:
    """Start the supervisor unless it runs, and see that it does."""
    if owner(run, node) is None:
        command = [
            sys.executable,
            "-P",
            "-m",
            "launch.clusters.node",
            "--run",
            str(run),
            "--node",
            str(node),
            "supervise",
        ]
        with (run / FOLDER / LOGS / f"node-{node}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        while owner(run, node) is None:
            if process.poll() is not None:
                raise RLHFError(f"the supervisor ended with exit code {process.returncode}; see {log.name}")
            time.sleep(LOOK_SECONDS)
    return {"pid": owner(run, node)}


def stop(run: Path, node: int) -> dict[str, object]:
    """End the supervisor, and with it what it has started."""
    if pid := owner(run, node):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        while owner(run, node) == pid:
            time.sleep(LOOK_SECONDS)
    return {"pid": pid}


def supervise(run: Path, node: int) -> None:
    """Be the supervisor of a node, of which there is one."""
    from launch.clusters.supervisor import Supervisor

    with place(run, node).open("a+", encoding="utf-8") as file:
        for _ in range(20):  # who asks for the owner holds it for a moment
            if locked(file):
                break
            time.sleep(0.1)
        else:
            return
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            Supervisor(run, read_itinerary(run), node).loop()
        finally:
            file.truncate(0)


def place(run: Path, node: int) -> Path:
    """A file of this machine, not of the shared folder, whose lock the supervisor holds: it goes with the machine."""
    name = hashlib.sha256(f"{run}#{node}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"rlhf-{os.getuid()}-{name}.lock"


def owner(run: Path, node: int) -> int | None:
    """The process that is the node's supervisor, if one is."""
    try:
        with place(run, node).open(encoding="utf-8") as file:
            if locked(file):
                return None
            return int(file.readline())
    except (OSError, ValueError):
        return None


def locked(file: IO[str]) -> bool:
    """Take a file's lock, for as long as it is open; whether that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
