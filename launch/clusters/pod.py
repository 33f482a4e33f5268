"""Run a stage's processes on one of its nodes, with their own exit codes and signals. Loads no torch.

    python -P -m launch.clusters.pod --run RUN --stage STAGE --nodes N --processes P --address HOST -- COMMAND ...

torchrun's agent makes 1 of every exit code, so that no failure policy could tell bad input from a lost node, and
ends its workers 30 s after SIGTERM, checkpoint or not. Who counts restarts here is the cluster, which starts all nodes
anew, so that nothing of an agent's is missed. The node's number is JOB_COMPLETION_INDEX of an Indexed Job,
PET_NODE_RANK of Kubeflow Trainer, or RANK of the Training Operator; the first node's address --address,
PET_MASTER_ADDR or MASTER_ADDR.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from launch.clusters.due import await_free, due
from launch.clusters.recipe import bring_recipe
from launch.local import BAD_INPUT, LocalStage, Meeting, follow_parent
from rlhf.errors import ConfigError, RLHFError
from stages.lineage import STAGES
from stages.signals import RESUMABLE

NUMBERS = ("JOB_COMPLETION_INDEX", "PET_NODE_RANK", "RANK")
ADDRESSES = ("PET_MASTER_ADDR", "MASTER_ADDR")
PORT = 29400
NAME_SECONDS = 600.0  # until the first node has a name: its image may still be on the way
SERVER_SECONDS = 3600.0  # until a server has loaded its model
SIGHT_SECONDS = 60.0  # until what another node has written is seen here
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Beside:
    """A server on this node, of its processes alone."""

    command: Sequence[str]
    environment: dict[str, str]
    health: str | None  # the address that answers 200, or as tcp://HOST:PORT takes connections, once it serves

    @staticmethod
    def read(text: str) -> Beside:
        """From JSON."""
        content: dict[str, Any] = json.loads(text)
        return Beside(content["command"], content.get("environment", {}), content.get("health"))


def meeting_of(nodes: int, address: str | None, port: int, seconds: float = NAME_SECONDS) -> Meeting:
    """This node among the others, by what Kubernetes says of it. Raises ConfigError where it says nothing."""
    if nodes == 1:
        return Meeting()
    number = number_here()
    if number is None or int(number) >= nodes:
        told = f"{number} of {nodes}" if number else f"none of {', '.join(NUMBERS)} is set"
        raise ConfigError(f"this node's number: {told}; start it as a pod of an Indexed Job, TrainJob or PyTorchJob")
    if int(number) == 0:
        # Its own name may come later than itself: it listens at all its addresses, and only has to reach itself.
        return Meeting(nodes, 0, "127.0.0.1", port)
    found = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if found is None:
        raise ConfigError("--address: the first node is not known; give its name")
    await_name(found, seconds)
    return Meeting(nodes, int(number), found, port)


def number_here() -> str | None:
    """This node's number, as Kubernetes says it."""
    return next((os.environ[name] for name in NUMBERS if os.environ.get(name, "").isdigit()), None)


def await_name(host: str, seconds: float) -> None:
    """Wait until a name has an address. Raises OSError where it gets none: another try may find it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise OSError(f"{host}: has no address after {seconds:.0f} s ({error}); see the first node") from error
        time.sleep(min(LOOK_SECONDS, seconds))


@contextmanager
def serving(servers: Sequence[Beside], seconds: float = SERVER_SECONDS) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """Servers, ready before the processes start, and gone after them. Raises OSError where one does not come up."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for server in servers:
            own = {**os.environ, **server.environment}
            process = subprocess.Popen(server.command, env=own, start_new_session=True, preexec_fn=follow_parent())
            running.append(process)
            if server.health:
                await_health(server.health, process, seconds)
        yield running
    finally:
        for process in running:
            end(process)


def await_health(address: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a server answers."""
    where = urlsplit(address)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise OSError(f"{address}: its server has ended with exit code {process.returncode}")
        try:
            if where.scheme == "tcp":
                socket.create_connection((str(where.hostname), where.port or 0), 5.0).close()
                return
            if httpx.get(address, timeout=5.0, trust_env=False).is_success:
                return
        except (httpx.HTTPError, OSError):
            pass  # it still loads
        time.sleep(LOOK_SECONDS)
    raise OSError(f"{address}: its server does not answer after {seconds:.0f} s")


def end(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """End a server and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def say(line: str) -> None:
    """A line for people."""
    print(line, flush=True)


def run(options: argparse.Namespace) -> int:
    """Run the stage if it is due; its exit code."""
    if options.recipe:
        bring_recipe(options.recipe, options.run)
    if options.nodes == 1 or number_here() == "0":  # the others may come when this try has begun on the first
        await_free(options.run / options.stage)
    if not due(options.run, options.stage, SIGHT_SECONDS):
        say(f"{options.stage}: complete, nothing to do")
        return 0
    meeting = meeting_of(options.nodes, options.address, options.port)
    with serving(options.beside) as servers:
        # One that comes while they start would leave them behind: it is seen to once they have.
        came: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
        stage = LocalStage(options.command, options.processes, meeting=meeting)
        if came:
            stage.kill()
            return RESUMABLE
        outcome = stage.wait(options.grace, say)
        lost = [server.returncode for server in servers if server.poll() is not None]
    for problem in outcome.problems:
        print(f"error: {problem}", file=sys.stderr)
    if outcome.code == BAD_INPUT and lost:  # what the user need not mend
        raise OSError(f"{options.stage}: a server beside it has ended with exit code {lost[0]}")
    return outcome.code


def stopped(number: int, frame: object) -> None:
    """A signal before the stage has begun: there is nothing to write."""
    sys.exit(RESUMABLE)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m launch.clusters.pod", usage="%(prog)s [options] -- COMMAND ...")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stage", choices=list(STAGES), required=True)
    parser.add_argument("--recipe", type=Path, help="brought into the run directory first")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="of this node")
    parser.add_argument("--address", help="of the first node")
    parser.add_argument("--port", type=int, default=PORT, help="on the first node")
    parser.add_argument("--grace", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--beside", type=Beside.read, action="append", default=[], metavar="JSON", help="a server")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    # As the first process of a container we would ignore what has no handler.
    signal.signal(signal.SIGTERM, stopped)
    try:
        sys.exit(run(options))
    except (RLHFError, OSError) as error:
        for line in getattr(error, "problems", (str(error),)):
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2 if isinstance(error, RLHFError) and not error.transient else 1)


if __name__ == "__main__":
    main()
