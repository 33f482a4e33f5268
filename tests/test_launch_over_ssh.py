"""`rlhf launch` over two nodes that it reaches by ssh, as somebody does it, faults included.

`tests/soak/test_launch_over_ssh.py` has all faults under both starters.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import SSHCluster, ssh_cluster  # noqa: F401  # the fixture `cluster`
from interruption import assert_same, own_copy
from launched import SETTINGS, STEPS, Launched, undisturbed  # noqa: F401  # the fixture `reference`
from network import network  # noqa: F401  # the fixture `net`
from running import TINY

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


def test_a_chain_over_two_nodes(cluster: SSHCluster, tiny_run_of_two: Path, tmp_path: Path) -> None:
    """Each stage on both; its figures are those of `rlhf run` with two processes."""
    run = Launched(cluster, "torchrun", tmp_path)
    run.launch(TINY)
    run.until_ended()
    assert run.states() == dict.fromkeys(("sft", "reward", "ppo", "evaluate"), "complete")
    for stage in ("sft", "reward", "ppo"):
        assert_same(run.run / stage, tiny_run_of_two / stage)
    assert (run.run / "summary.json").read_text()
    assert "[rank" not in run.logs("ppo", "--rank", "0") and "ppo: " in run.logs("ppo", "--rank", "0")


@pytest.mark.parametrize("on", ["torchrun", pytest.param("deepspeed", marks=pytest.mark.soak)])
def test_a_node_that_dies_comes_back_and_a_run_that_is_cancelled_goes_on(
    on: str, cluster: SSHCluster, tiny_run: Path, reference: Path, tmp_path: Path
) -> None:
    own_copy(tiny_run, tmp_path, ["sft", "reward"])
    run = Launched(cluster, on, tmp_path)
    run.launch(TINY, *SETTINGS, "--from", "ppo", "--until", "ppo")
    assert "ppo is running on" in run.refused(TINY, *SETTINGS, "--from", "ppo", "--until", "ppo")
    run.reach(2)
    assert run.states() == {"ppo": "running"}
    two = cluster.net.nodes[1]
    cluster.net.kill(two)  # its sshd included
    cluster.boot(two)
    run.until_next_step()
    assert run.cancel().startswith("ppo: stopped"), run.said()
    assert run.states() == {"ppo": "stopped"} and not run.processes()
    at = run.step()
    run.resume()
    run.until_ended()
    assert run.states() == {"ppo": "complete"}, run.said()
    assert at < STEPS and "going on from" in run.logs("ppo")
    assert_same(run.run / "ppo", reference)
    assert not run.processes()


def test_a_host_that_is_away_leaves_nothing_on_the_others(cluster: SSHCluster, tmp_path: Path) -> None:
    run = Launched(cluster, "torchrun", tmp_path)
    cluster.net.cut(cluster.net.nodes[1])
    try:
        said = run.refused(TINY)
    finally:
        cluster.net.mend(cluster.net.nodes[1])
    assert said.startswith(f"error: {cluster.net.nodes[1].address}: cannot be reached by ssh"), said
    assert len(said.splitlines()) == 1 and not run.run.exists() and not run.processes()


def test_a_folder_that_is_not_shared_is_a_line(cluster: SSHCluster, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    site = cluster.site.read_text()
    # The second node has an empty folder in its place.
    cover = f'if [ "$(hostname)" = node-2 ]; then mount -t tmpfs none {hidden}; cd {hidden}; fi'
    try:
        cluster.site.write_text(site + f"setup: ['{cover}']\n")
        said = Launched(cluster, "torchrun", hidden).refused(TINY)
    finally:
        cluster.site.write_text(site)
    assert "does not see" in said and "give a --run on a folder that all hosts share" in said, said
