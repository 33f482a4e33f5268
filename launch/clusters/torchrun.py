"""torchrun over the hosts of a hostfile."""

from launch.clusters.over_ssh import OverSSH

SCHEDULER = OverSSH("torchrun")
