"""Two nodes with an sshd each, as a person's cluster has them: `rlhf launch` reaches them from the first.

Their host keys, the key that logs in and all settings lie in a folder of the test; nothing of this machine's own sshd
or of its users' keys is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from debian import require
from network import Network, Node, _runs
from running import ROOT

from launch.clusters.records import Records

SSHD = "/usr/sbin/sshd"
SSHD_PORT = 2222


def require_ssh() -> None:
    """Install what is missing; fails where it cannot be had."""
    require("openssh-server openssh-client", "sshd", "ssh")
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd wants its children to be locked up


class SSHCluster:
    """Two nodes that let the tests in."""

    def __init__(self, net: Network, folder: Path) -> None:
        require_ssh()
        self.net = net
        self.folder = folder
        for name in ("login", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copyfile(folder / "login.pub", folder / "authorized_keys")
        self.sshd_config = folder / "sshd_config"
        self.sshd_config.write_text(
            f"Port {SSHD_PORT}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\n"
        )
        self.ssh_config = folder / "ssh_config"
        self.ssh_config.write_text(
            f"Host *\n  IdentityFile {folder}/login\n  IdentitiesOnly yes\n  StrictHostKeyChecking accept-new\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n  LogLevel ERROR\n"
        )
        self.hosts = folder / "hosts"
        self.hosts.write_text("".join(f"{node.address}:{SSHD_PORT} slots=1\n" for node in net.nodes))
        self.site = folder / "site.yaml"
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        settings = {"environment": own, "network": {"interface": "eth0"}, "ssh": ["-F", str(self.ssh_config)]}
        self.site.write_text(yaml.safe_dump(settings))
        self.daemons: list[subprocess.Popen[bytes]] = []
        for node in net.nodes:
            self.boot(node)

    def close(self) -> None:
        """End everything on both nodes."""
        for node in self.net.nodes:
            self.net.kill(node)
        for daemon in self.daemons:
            daemon.wait(30)

    def boot(self, node: Node) -> None:
        """Start a node's sshd, as after a reboot."""
        with (self.folder / f"sshd.{node.host}.log").open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.sshd_config)]
            clean = {name: value for name, value in os.environ.items() if not name.startswith(("RLHF_", "PYTHON"))}
            options = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "env": clean}
            self.daemons.append(self.net.start(node, command, **options))

    def rlhf(self, *arguments: str, folder: Path, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """The command line on the first node."""
        command = [sys.executable, "-P", "-m", "launch.cli", *arguments]
        started = self.net.start(
            self.net.nodes[0], command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        out, errors = started.communicate(timeout=seconds)
        return subprocess.CompletedProcess(command, started.returncode, out, errors)

    def launch(self, recipe: Path, on: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """`rlhf launch` over both nodes, one process on each."""
        where = ("--on", on, "--hosts", str(self.hosts), "--site", str(self.site), "--nodes", "2", "--processes", "1")
        return self.rlhf("launch", str(recipe), *where, *options, folder=folder)

    def supervisors(self, node: Node) -> list[int]:
        """What of us runs on a node, sshd apart."""
        return [pid for pid in self.net.processes(node) if _runs(pid) and "launch.clusters.node" in line_of(pid)]

    def said(self, run: Path) -> str:
        """All that nodes have written."""
        logs = sorted((run / "launch" / "logs").rglob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs)

    def ended(self, run: Path) -> bool:
        """Whether the run has come to its end, whichever."""
        return Records(run).order().do == "end"


@pytest.fixture(scope="module", name="cluster")
def ssh_cluster(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SSHCluster]:
    """Over the nodes of a file's tests."""
    made = SSHCluster(net, tmp_path_factory.mktemp("ssh"))
    yield made
    made.close()


def line_of(pid: int) -> Sequence[str]:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
