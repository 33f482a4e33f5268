"""The site's section `slurm`: what is the same for every run on a cluster under Slurm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf.config import Section

# One line each of `#SBATCH`: what stands in them must not begin another.
Word = Annotated[str, Field(pattern=r"^\S+$")]
Option = Annotated[str, Field(pattern=r"^-[^\n]*$")]


class Container(Section):
    """The image in which processes run; its interpreter is the site's `python`."""

    engine: Literal["pyxis", "apptainer"] = "pyxis"  # srun --container-image; or `apptainer exec`
    image: Word  # docker://..., a .sqsh file; a .sif file
    mounts: list[Word] = []  # /data:/data; the run directory and the working directory are mounted anyway
    options: list[Option] = []  # further ones of srun, or of apptainer exec


class SlurmSite(Section):
    """A cluster, and one's place in it. What is null is left to Slurm."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    reservation: Word | None = None
    comment: Annotated[str, Field(pattern=r"^[^\n\"\\]+$")] | None = None
    gpus: Literal["gpus-per-node", "gres"] = "gpus-per-node"  # how GPUs are asked for
    gpu_type: Word | None = None  # h100: --gpus-per-node=h100:8, or --gres=gpu:h100:8
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None  # of each process, where the job does not say
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = None  # of a node, likewise; "0": all of it
    hours: Annotated[float, Field(gt=0)] | None = None  # of a stage, likewise
    exclusive: bool = False  # nodes are shared with nobody
    signal_seconds: Annotated[int, Field(ge=0)] = 30  # signalled before its time is over, besides grace_seconds
    one_allocation: bool = False  # one job for the whole chain, in place of one for each stage
    options: list[Option] = []  # further ones of sbatch: --mail-type=FAIL
    servers: list[Option] = []  # of sbatch, for nodes on which generators have been given nodes of their own
    srun: list[Option] = []  # further ones of srun: --mpi=none
    container: Container | None = None
