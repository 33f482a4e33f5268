"""A Slurm cluster on this machine: the real daemons, three nodes, nothing of it outside one folder. Needs root.

Nodes are three slurmd under names of their own at 127.0.0.1. Accounting is off, so that what jobs leave has to do; a
requeued job waits for seconds and not for two minutes (`cred_expire`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from debian import require

from launch.local import free_port

NODES = ("n1", "n2", "n3")
LOST_SECONDS = 20  # SlurmdTimeout: until a node that is silent is down
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
ReturnToService=2
SlurmctldPort={port}
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool/%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmctldTimeout=10
SlurmdTimeout={lost}
KillWait=5
MinJobAge=300
JobRequeue=1
MaxArraySize=1001
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=n[1-3] MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 State=UNKNOWN"


class Cluster:
    """Its daemons, and what can happen to its nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"

    def open(self) -> None:
        """Start munge, the controller and a daemon for each node."""
        for name in ("run", "log", "state", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        run, log = self.folder / "run", self.folder / "log"
        own = [f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed"]
        _run("munged", f"--key-file={key}", *own, f"--log-file={log}/munged.log", "--force")
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(NODE.format(name=name, host=host, port=free_port()) for name in NODES)
        values = {"host": host, "folder": self.folder, "port": free_port(), "lost": LOST_SECONDS, "nodes": nodes}
        self.configuration.write_text(CONFIGURATION.format(**values), encoding="utf-8")
        os.environ["SLURM_CONF"] = str(self.configuration)
        _run("slurmctld", "-f", str(self.configuration))
        for node in NODES:
            self.revive(node)
        deadline = time.monotonic() + 60
        while self.said("sinfo", "--noheader", "--states=idle", "--partition=main", "-o", "%D").strip() != "3":
            assert time.monotonic() < deadline, self.said("sinfo")
            time.sleep(0.2)

    def close(self) -> None:
        """End all of it."""
        with suppress(OSError, subprocess.SubprocessError):
            self.said("scancel", "--user=root")
            time.sleep(1)
        for node in NODES:
            self.lose(node)
        for name in ("slurmctld.pid", "munged.pid"):
            self._kill(name)
        os.environ.pop("SLURM_CONF", None)

    def said(self, *command: str) -> str:
        """What one of Slurm's own commands answers."""
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout

    def revive(self, node: str) -> None:
        """Start a node's daemon."""
        _run("slurmd", "-f", str(self.configuration), "-N", node)

    def lose(self, node: str) -> None:
        """SIGKILL to a node's daemon, to what watches over its jobs, and to these."""
        theirs = self.processes(node)
        self._kill(f"slurmd.{node}.pid")
        for process in theirs:
            with suppress(psutil.Error):
                process.kill()

    def processes(self, node: str, module: str | None = None) -> list[psutil.Process]:
        """What runs on a node below its daemon; of a module the processes of Python alone."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == node and self._ours(process):
                    found.append(process)
        if module:
            return [each for each in found if "python" in each.name() and module in each.cmdline()]
        watchers = []
        for process in found:
            with suppress(psutil.Error):
                parent = process.parent()
                if parent and parent.name() == "slurmstepd" and parent not in watchers:
                    watchers.append(parent)
        return [*watchers, *found]

    def _ours(self, process: psutil.Process) -> bool:
        return process.environ().get("SLURM_CONF") == str(self.configuration)

    def _kill(self, name: str) -> None:
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / "run" / name).read_text()), signal.SIGKILL)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """The cluster, ended at the end; SLURM_CONF names it meanwhile. Fails where there cannot be one."""
    assert os.geteuid() == 0, "slurmd needs root here: run this test as root, or leave it out"
    require("slurm-wlm munge", "slurmctld", "slurmd", "munged")
    made = Cluster(folder)
    try:
        made.open()
        yield made
    finally:
        made.close()
