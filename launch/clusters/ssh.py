"""Hosts by ssh: look whether each can be used, start what is to run there. Secrets go over its standard input."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launch.clusters.hosts import LOCALHOST, Host
from launch.clusters.itinerary import Itinerary

CONNECT_SECONDS = 10
ANSWER_SECONDS = 120  # of a Python that loads from a shared folder
UNREACHABLE = 255  # ssh's own exit code


@dataclass(frozen=True)
class Answer:
    """What a host has answered."""

    host: Host
    value: Mapping[str, object] | None  # None: it has failed
    problem: str = ""


def command_on(host: Host, script: str, verb: str, options: Sequence[str] = ()) -> list[str]:
    """The command line that runs a script on a host."""
    words = ["sh", "-c", script, "sh", verb]
    if host.name == LOCALHOST:
        return words
    port = ["-p", str(host.port)] if host.port else []
    limits = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    return ["ssh", *limits, *options, *port, host.login, shlex.join(words)]


def ask(plan: Itinerary, nodes: Sequence[int], verb: str) -> list[Answer]:
    """Have nodes do something, all at once, and their answers in order."""
    if not nodes:
        return []
    with ThreadPoolExecutor(min(64, len(nodes))) as pool:
        return list(pool.map(lambda node: ask_one(plan, node, verb), nodes))


def ask_one(plan: Itinerary, node: int, verb: str) -> Answer:
    """One of them; its answer is the last line that it prints, as JSON."""
    host = plan.hosts[node]
    secrets = {name: os.environ[name] for name in plan.secrets if os.environ.get(name)}
    try:
        done = subprocess.run(
            command_on(host, plan.start[node], verb, plan.ssh),
            input=json.dumps(secrets) + "\n",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(host, None, f"{host.name}: no answer within {ANSWER_SECONDS} s; look whether it is well")
    except OSError as error:
        return Answer(host, None, f"{host.name}: {error}; install an ssh client")
    said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
    said = said.removeprefix("error: ")
    if done.returncode:
        return Answer(host, None, failed(host, done.returncode, said))
    try:
        value = json.loads(done.stdout.strip().splitlines()[-1])
        return Answer(host, dict(value))
    except (ValueError, IndexError, TypeError):
        return Answer(
            host, None, f"{host.name}: answers {said!r}, which is no answer of ours; look at the site's setup"
        )


def failed(host: Host, code: int, said: str) -> str:
    """What has become of a command on a host, in a line. said: its last line, or ssh's own."""
    if code == UNREACHABLE and host.name != LOCALHOST:
        return f"{host.name}: cannot be reached by ssh ({said}); try ssh {host.login} true"
    return f"{host.name}: {said}"
