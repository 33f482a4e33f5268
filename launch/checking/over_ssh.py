"""`rlhf doctor` on the hosts of a list, started from here by ssh: each is asked whether it can, those that can meet.

Of each host there is one connection, for as long as the check takes. When we end, however we end, the connections do,
and with them what runs on the hosts (`launch.checking.answering`).
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.checking.answering import MARK, own_version
from launch.checking.examination import CHECK, FACTS_SECONDS, SHORT_SECONDS, Verdict
from launch.checking.finding import Finding, failure, worst
from launch.checking.lines import Line
from launch.checking.meeting import PROTOCOL, TOKEN, Invitation, Say
from launch.clusters.hosts import Host
from launch.clusters.job import SECRETS
from launch.clusters.network import network_environment
from launch.clusters.site import Site
from launch.clusters.ssh import ANSWER_SECONDS, UNREACHABLE, command_on, failed

ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4")  # a host that is gone is noticed
ENDS_SECONDS = 10.0  # for ssh to end with its connection
NOISE = 1000  # lines of a shell's set-up
REMEDY = "rlhf has to be there as it is here: this folder, and an interpreter that has it (python, in a --site)"
SAME = "install the same on all nodes, or share one environment"


@dataclass(frozen=True)
class Asked:
    """What each host is asked, as it would be typed there."""

    recipe: str | None
    overrides: tuple[str, ...]
    run: str | None
    processes: int | None  # of each node
    seconds: float  # for the nodes to meet


class Patience:
    """How long to wait from now on, for all that are waited for together."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, none below 0."""
        return max(0.0, self.until - time.monotonic())


class Conversation:
    """With the command on one host."""

    def __init__(self, host: Host, command: Sequence[str]) -> None:
        self.host = host
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.spoken = False  # whether it is a command of ours that runs there
        ours, theirs = socket.socketpair()
        with theirs:
            self.line = Line(ours)
            try:
                # Not of our process group: Ctrl-C ends the connection, and not ssh before it has told the other side.
                self.process = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self.errors, start_new_session=True
                )
            except OSError:
                self.close_files()
                raise

    def tell(self, message: Mapping[str, Any]) -> None:
        """Say something; whether it has gone is seen where it answers."""
        with suppress(OSError):
            self.line.send(message)

    def hear(self, patience: Patience, say: Say) -> dict[str, Any]:
        """What it says next, progress apart; {"problem": line} where it has ended, or says nothing in time."""
        for _ in range(NOISE):
            try:
                said = self.line.receive(patience.left())
            except ValueError:
                continue  # no line of ours
            except TimeoutError:
                return {
                    "problem": f"{self.host.name}: no answer within {patience.seconds:g} s; look whether it is well"
                }
            except OSError:
                break
            if isinstance(said, dict) and isinstance(message := said.get(MARK), dict):
                self.spoken = True
                if "says" not in message:
                    return message
                say(str(message["says"]))
        return {"problem": self.last_words()}

    def last_words(self) -> str:
        """Why it has ended, in a line."""
        close_all([self])
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        code = self.process.returncode
        said = lines[-1].removeprefix("error: ") if lines else f"ended with exit code {code}"
        return failed(self.host, code, said if code == UNREACHABLE or self.spoken else f"{said}; {REMEDY}")

    def close_files(self) -> None:
        """Let go of what is ours."""
        self.line.close()
        self.errors.close()


def examine_hosts(asked: Asked, hosts: Sequence[Host], site: Site, say: Say) -> Verdict:
    """Have all hosts check themselves and each other; hosts that cannot are a line each, and the others go on."""
    findings: list[Finding] = []
    with ExitStack() as stack:
        talks: list[Conversation] = []
        for host in hosts:
            try:
                talk = Conversation(host, command_on(host, script_of(site), "doctor", (*site.ssh, *ALIVE)))
            except OSError as error:
                findings.append(failure(CHECK, f"{host.name}: {error}", "install an ssh client"))
                continue
            stack.callback(talk.close_files)
            talks.append(talk)
        stack.callback(lambda: close_all(talks))
        say(f"asking {len(talks)} hosts by ssh")
        question = question_of(asked)
        for talk in talks:
            talk.tell(question)
        ready, patience = [], Patience(ANSWER_SECONDS)
        for talk in talks:
            if problems := list(unfit(talk, talk.hear(patience, say))):
                findings += problems
            else:
                ready.append(talk)
        if not ready:
            return Verdict(worst(findings), True, tuple(findings))
        found, facts = gather(ready, asked.seconds, len(hosts), site, say)
    findings += found
    return Verdict(worst(findings), True, tuple(findings), facts)


def close_all(talks: Sequence[Conversation]) -> None:
    """End connections at a time, and with them the commands on the hosts."""
    for talk in talks:
        with suppress(OSError):
            talk.line.connection.shutdown(socket.SHUT_RDWR)
    for number in (signal.SIGTERM, signal.SIGKILL):
        patience = Patience(ENDS_SECONDS)
        for talk in talks:
            try:
                talk.process.wait(patience.left())
            except subprocess.TimeoutExpired:
                talk.process.send_signal(number)
    for talk in talks:
        talk.process.wait()


def script_of(site: Site) -> str:
    """What a host's shell runs: the site's set-up and environment, in the folder that we are in."""
    environment = {**network_environment(site), **site.environment}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    command = [site.python or sys.executable, "-P", "-m", "launch.checking.answering"]
    lines = ["set -e", f"cd {shlex.quote(str(Path.cwd()))}", *site.setup, *exports, f"exec {shlex.join(command)}"]
    return "\n".join(lines)


def question_of(asked: Asked) -> dict[str, Any]:
    """What a host is told first; secrets go this way and on no command line. Only nodes with our token meet."""
    own = {name: os.environ[name] for name in SECRETS if os.environ.get(name)}
    own[TOKEN] = os.environ.get(TOKEN) or secrets.token_hex(16)
    return {"protocol": PROTOCOL, "version": own_version(), "secrets": own, **asdict(asked)}


def unfit(talk: Conversation, told: Mapping[str, Any]) -> list[Finding]:
    """Why a host cannot take part."""
    name = talk.host.name
    if "problem" in told:
        return [failure(CHECK, told["problem"], "")]
    if "problems" in told:
        return [failure("recipe", f"{name}: {problem}", "") for problem in told["problems"]]
    if told.get("version") != own_version():
        return [failure("versions", f"{name}: rlhf is {told.get('version')} there and {own_version()} here", SAME)]
    if told.get("protocol") != PROTOCOL:
        return [failure("versions", f"{name}: its rlhf says things that are not understood here", SAME)]
    return []


def gather(
    talks: Sequence[Conversation], seconds: float, nodes: int, site: Site, say: Say
) -> tuple[list[Finding], Mapping[str, Any]]:
    """Have hosts meet at the first of them, whose findings and facts these are, with what kept another one away."""
    place = talks[0].host.address
    for rank, talk in enumerate(talks):
        invited = asdict(Invitation(len(talks), place, site.network.port, rank, seconds)) if len(talks) > 1 else None
        talk.tell({"nodes": nodes, "invited": invited})
    findings: list[Finding] = []
    facts: dict[str, Any] = {}
    patience = Patience(seconds + 2 * FACTS_SECONDS)
    for rank, talk in enumerate(talks):
        told = talk.hear(patience, say)
        if rank == 0:  # the others end with the first, all of them
            patience = Patience(seconds + SHORT_SECONDS)
        name = talk.host.name
        if "problem" in told:
            findings.append(failure(CHECK, told["problem"], ""))
        findings += [failure(CHECK, f"{name}: {problem}", "") for problem in told.get("problems", ())]
        if rank == 0 and "verdict" in told:
            facts = dict(told["verdict"])
            findings += [Finding(**each) for each in facts.pop("findings")]
            facts.pop("level")
    return findings, facts
