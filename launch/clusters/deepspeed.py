"""deepspeed over the hosts of a hostfile, without its own ssh."""

from launch.clusters.over_ssh import OverSSH

SCHEDULER = OverSSH("deepspeed")
