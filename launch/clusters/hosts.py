"""Hosts that are reached by ssh, from a hostfile as mpirun and deepspeed take it.

# host[:port of sshd]  slots=processes  address=where others of the run reach it
node-1 slots=8
me@node-2:2222 slots=8 address=10.0.0.2
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import ConfigError

LOCALHOST = "localhost"
_HOST = re.compile(r"(?:(?P<user>\w[\w.-]*)@)?(?P<host>\w[\w.-]*)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Host:
    """A machine with an sshd; localhost, alone, is this one, without any."""

    name: str  # as ssh takes it
    address: str  # as the others of the run reach it
    user: str | None = None
    port: int | None = None  # of sshd
    slots: int | None = None  # processes that it takes; None: nobody says

    @property
    def login(self) -> str:
        """What ssh is told."""
        return f"{self.user}@{self.name}" if self.user else self.name


HERE = Host(LOCALHOST, "127.0.0.1")


def named_hosts(option: str, names: str) -> tuple[Host, ...]:
    """The hosts of a list with commas, in its order. Raises ConfigError with a line for each that is none."""
    hosts: list[Host] = []
    problems: list[str] = []
    for name in names.split(","):
        try:
            host = _host([name.strip()])
        except ValueError as error:
            problems.append(f"{option} {names}: {error}")
            continue
        if host.name in (other.name for other in hosts):
            problems.append(f"{option} {names}: {host.name} is there twice; name each host once")
        hosts.append(host)
    problems += _problems_of_localhost(option, hosts)
    if problems:
        raise ConfigError(*problems)
    return tuple(hosts)


def read_hosts(path: Path) -> tuple[Host, ...]:
    """The hosts of a file, in its order. Raises ConfigError with a line for each line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--hosts={path}: cannot be read ({error}); give a file with a host on each line") from error
    hosts: list[Host] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            host = _host(words)
        except ValueError as error:
            problems.append(f"{path}, line {number}: {error}")
            continue
        if host.name in (other.name for other in hosts):
            problems.append(f"{path}, line {number}: {host.name} is there twice; name each host once")
        hosts.append(host)
    if not hosts and not problems:
        problems.append(f"--hosts={path}: names no host; write one on each line, for example node-1 slots=8")
    problems += _problems_of_localhost(str(path), hosts)
    if problems:
        raise ConfigError(*problems)
    return tuple(hosts)


def _problems_of_localhost(where: str, hosts: list[Host]) -> list[str]:
    if len(hosts) > 1 and any(host.name == LOCALHOST for host in hosts):
        return [f"{where}: localhost is another machine on each host; name it as the others reach it"]
    return []


def _host(words: list[str]) -> Host:
    found = _HOST.fullmatch(words[0]) if words[0] else None
    if found is None or not 0 < int(found["port"] or 22) < 65536:
        raise ValueError(f"{words[0] or 'nothing'} is no host; write host or host:port, for example node-1:22")
    given: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in ("slots", "address") or not equals or not value:
            raise ValueError(f"{word} is not known; write slots=PROCESSES or address=ADDRESS")
        given[key] = value
    if "slots" in given and not re.fullmatch(r"[1-9]\d{0,3}", given["slots"]):
        raise ValueError(f"slots={given['slots']} is no number of processes; write for example slots=8")
    if not re.fullmatch(r"[\w.:-]+", given.get("address", "-")):
        raise ValueError(f"address={given['address']} is none; write a name or an IP address")
    port = int(found["port"]) if found["port"] else None
    slots = int(given["slots"]) if "slots" in given else None
    address = given.get("address", HERE.address if found["host"] == LOCALHOST else found["host"])
    return Host(found["host"], address, found["user"], port, slots)
