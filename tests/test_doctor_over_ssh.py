"""`rlhf doctor` that starts itself by ssh on two nodes: the table of both, and a line for each host that cannot."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import SSHCluster, line_of
from interruption import seconds_until
from network import Network, Node, network
from running import ROOT, TINY

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SSHCluster]:
    made = SSHCluster(net, tmp_path_factory.mktemp("ssh"))
    yield made
    made.close()


def doctor(cluster: SSHCluster, folder: Path, *options: str, code: int) -> dict[str, Any]:
    """What it says of both, typed on the first."""
    where = ("--hosts", str(cluster.hosts), "--site", str(cluster.site))
    done = cluster.rlhf("doctor", str(TINY), "--json", *where, *options, folder=folder, seconds=300)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def amiss(verdict: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(each["check"], each["level"], each["what"]) for each in verdict["findings"] if each["level"] != "ok"]


def ours(cluster: SSHCluster, nodes: Sequence[Node]) -> list[int]:
    """What of the check runs on nodes."""
    words = ("launch.checking.answering", "launch.checking.collectives")
    return [pid for node in nodes for pid in cluster.net.processes(node) if any(word in line_of(pid) for word in words)]


def test_both_nodes_are_in_one_table(cluster: SSHCluster, tmp_path: Path) -> None:
    names = ",".join(f"{node.address}:2222" for node in cluster.net.nodes)
    done = cluster.rlhf(
        *("doctor", str(TINY), "--nodes", names, "--processes", "1", "--site", str(cluster.site)),
        folder=tmp_path,
        seconds=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert ["ok", "nodes", "node-1 and node-2 met at 10.77.0.1:29400"] in lines, done.stdout
    assert {"network", "clocks", "folder", "collectives"} <= {line[1] for line in lines}
    assert not ours(cluster, cluster.net.nodes) and list(tmp_path.iterdir()) == []


def test_a_host_that_cannot_is_a_line_and_the_other_one_goes_on(cluster: SSHCluster, tmp_path: Path) -> None:
    two = cluster.net.nodes[1]
    site = cluster.site.read_text()
    old = tmp_path / "old" / "rlhf-0.0.1.dist-info" / "METADATA"
    old.parent.mkdir(parents=True)
    old.write_text("Metadata-Version: 2.1\nName: rlhf\nVersion: 0.0.1\n")
    empty = tmp_path / "empty"
    empty.mkdir()

    def there(command: str) -> None:
        """Of the second node alone, before ours."""
        own = yaml.safe_load(site)
        own["environment"].pop("PYTHONPATH")
        elsewhere = f'if [ "$(hostname)" = node-2 ]; then {command}; fi'
        cluster.site.write_text(yaml.safe_dump({**own, "setup": [f"export PYTHONPATH={ROOT}", elsewhere]}))

    wrong = {
        f"export PYTHONPATH={empty}; cd {empty}": (
            "nodes",
            rf"{two.address}: .*No module named .*; rlhf has to be there",
        ),
        f"export PYTHONPATH={old.parents[1]}:{ROOT}": (
            "versions",
            rf"{two.address}: rlhf is 0\.0\.1 there and \S+ here",
        ),
        "cd /not/there": ("nodes", rf"{two.address}: .*cd.*/not/there; rlhf has to be there as it is here"),
    }
    try:
        for command, (check, said) in wrong.items():
            there(command)
            verdict = doctor(cluster, tmp_path, code=1)
            (found,) = amiss(verdict)
            assert found[:2] == (check, "failure"), found
            assert re.match(said, found[2]), found
            assert [node["name"] for node in verdict["nodes"]] == ["node-1"]
    finally:
        cluster.site.write_text(site)
    cluster.net.cut(two)
    try:
        (found,) = amiss(doctor(cluster, tmp_path, code=1))
    finally:
        cluster.net.mend(two)
    assert found[:2] == ("nodes", "failure") and found[2].startswith(f"{two.address}: cannot be reached by ssh (")
    assert not ours(cluster, cluster.net.nodes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_when_it_is_ended(number: signal.Signals, cluster: SSHCluster, tmp_path: Path) -> None:
    one, two = cluster.net.nodes
    where = ["--hosts", str(cluster.hosts), "--site", str(cluster.site)]
    command = [sys.executable, "-P", "-m", "launch.cli", "doctor", str(TINY), *where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path, "text": True}
    # What builds the namespace hands its process over to the command, which is the one that gets the signal.
    typed = cluster.net.start(one, command, **pipes)
    said = lambda: f"{typed.poll()}"  # noqa: E731
    seconds_until(lambda: len(ours(cluster, [two])) > 0, 120, said)
    time.sleep(1)
    typed.send_signal(number)
    typed.communicate(timeout=60)
    seconds_until(lambda: not ours(cluster, cluster.net.nodes), 60, said)
    assert list(tmp_path.iterdir()) == []
