"""`rlhf doctor` that starts itself by ssh on two nodes: the table of both, and a line for each host that cannot."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from cluster import SSHD_PORT, SSHCluster, line_of, ssh_cluster  # noqa: F401  # the fixture `cluster`
from doctors import Surgery, with_faults
from interruption import seconds_until
from network import PORT, Node, network  # noqa: F401  # the fixture `net`
from running import ROOT, TINY

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


def ours(cluster: SSHCluster, nodes: Sequence[Node]) -> list[int]:
    """What of the check runs on nodes."""
    words = ("launch.checking.answering", "stages.collectives")
    return [pid for node in nodes for pid in cluster.net.processes(node) if any(word in line_of(pid) for word in words)]


def test_both_nodes_are_in_one_table(cluster: SSHCluster, tmp_path: Path) -> None:
    names = ",".join(f"{node.address}:{SSHD_PORT}" for node in cluster.net.nodes)
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


ABSENT = "10.77.0.9"  # no machine has it
CANNOT = {
    "no package": (
        "export PYTHONPATH={folder}/without",
        "nodes",
        r"{host}: .*No module named .*; rlhf has to be there as",
    ),
    "another version": ("export PYTHONPATH={folder}:{root}", "versions", r"{host}: rlhf is 0\.0\.1 there and \S+ here"),
    "no such folder": ("cd /not/there", "nodes", r"{host}: .*cd.*/not/there; rlhf has to be there as it is here"),
}


@pytest.mark.parametrize("fault", CANNOT)
def test_a_host_that_cannot_is_a_line_and_the_other_one_goes_on(
    fault: str, cluster: SSHCluster, tmp_path: Path
) -> None:
    one, two = cluster.net.nodes
    old = tmp_path / "rlhf-0.0.1.dist-info" / "METADATA"
    old.parent.mkdir()
    old.write_text("Metadata-Version: 2.1\nName: rlhf\nVersion: 0.0.1\n")
    without = tmp_path / "without" / "launch" / "__init__.py"  # in the way of the one that is installed
    without.parent.mkdir(parents=True)
    without.touch()
    command, check, said = CANNOT[fault]
    # Of the second node alone, behind the site's environment, which its commands come before.
    there = f'[ "$(hostname)" != node-2 ] || {{ {command.format(folder=tmp_path, root=ROOT)}; }}'
    own = yaml.safe_load(cluster.site.read_text())
    own["environment"].pop("PYTHONPATH")
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({**own, "setup": [f"export PYTHONPATH={ROOT}", there]}))
    names = f"{one.address}:{SSHD_PORT},{two.address}:{SSHD_PORT},{ABSENT}"
    asked = ("doctor", "--json", "--nodes", names, "--processes", "1", "--site", str(site))
    done = cluster.rlhf(*asked, folder=tmp_path, seconds=300)
    verdict = json.loads(done.stdout)
    assert done.returncode == 1 and [node["name"] for node in verdict["nodes"]] == ["node-1"], done.stderr
    amiss = {(each["check"], each["what"]) for each in verdict["findings"] if each["level"] == "failure"}
    ((_, away),) = [each for each in amiss if each[1].startswith(ABSENT)]
    assert away.startswith(f"{ABSENT}: cannot be reached by ssh (") and away.endswith(f"; try ssh {ABSENT} true")
    ((checked, line),) = [each for each in amiss if each[1].startswith(two.address)]
    assert checked == check and re.match(said.format(host=two.address), line), line
    assert not ours(cluster, cluster.net.nodes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_when_it_is_ended(number: signal.Signals, cluster: SSHCluster, tmp_path: Path) -> None:
    """While nodes wait for each other in vain, which they would do for long."""
    one = cluster.net.nodes[0]
    where = ["--hosts", str(cluster.hosts), "--site", str(cluster.site), "--wait-seconds", "500"]
    command = [sys.executable, "-P", "-m", "launch.cli", "doctor", str(TINY), *where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path, "text": True}
    listens = f":{PORT:04X} 00000000:0000 0A"

    def waits() -> bool:
        """Whether the first node listens."""
        found = subprocess.run(["ip", "netns", "exec", one.namespace, "cat", "/proc/net/tcp"], capture_output=True)
        return listens in found.stdout.decode()

    with with_faults(Surgery(cluster.net, tmp_path), "closed_rendezvous"):
        # What builds the namespace hands its process over to the command, which is the one that gets the signal.
        typed = cluster.net.start(one, command, **pipes)
        said = lambda: f"{typed.poll()}"  # noqa: E731
        seconds_until(waits, 120, said)
        assert len(ours(cluster, cluster.net.nodes)) >= 2
        typed.send_signal(number)
        typed.communicate(timeout=60)
        seconds_until(lambda: not ours(cluster, cluster.net.nodes), 60, said)
    assert list(tmp_path.iterdir()) == []
