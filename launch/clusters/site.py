"""A site: what is the same for every run on a cluster, and no business of a recipe. One small file, all of it optional.

rlhf launch my.yaml --on slurm --site cluster.yaml      or  RLHF_SITE=cluster.yaml,  or  ~/.config/rlhf/site.yaml
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from launch.clusters.job import SECRETS, SECRETS_HERE
from launch.clusters.manifests.settings import KubernetesSite
from launch.clusters.slurm_settings import SlurmSite
from rlhf.config import Section
from rlhf.errors import ConfigError
from rlhf.recipe_yaml import Loader

SITE = "RLHF_SITE"
DEFAULT = Path("~/.config/rlhf/site.yaml")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # of a variable

Port = Annotated[int, Field(ge=1024, le=65535)]


class Network(Section):
    """How nodes reach each other; what is null is left to the library."""

    interface: str | None = None  # of NCCL, gloo and the rendezvous: eth0, ib0
    infiniband: str | None = None  # NCCL_IB_HCA: mlx5_0,mlx5_1; "off": NCCL_IB_DISABLE=1
    port: Port = 29400  # of the rendezvous, on the first node
    timeout_minutes: float | None = None  # NCCL's own patience; the watchdog of the recipe is sooner
    flight_recorder: bool = True  # TORCH_NCCL_TRACE_BUFFER_SIZE and TORCH_NCCL_DUMP_ON_TIMEOUT


class Site(Section):
    """A cluster."""

    python: str | None = None  # the interpreter on every node; null: the one that launches, or a container's
    setup: list[str] = []  # shell lines before anything else on a node: module load cuda, source env/bin/activate
    environment: dict[str, str] = {}  # of every process; no secrets: they come from the environment
    network: Network = Network()
    ssh: list[str] = []  # options of ssh: [-i, key], [-F, config]; torchrun and deepspeed over hosts
    kubernetes: KubernetesSite = KubernetesSite()
    slurm: SlurmSite = SlurmSite()

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Site:
        """Every scheduler writes the environment into files that others can read, some into a shell's."""
        if odd := [name for name in self.environment if not NAME.fullmatch(name)]:
            raise ValueError(f"environment: {odd[0]!r} is no name of a variable; use letters, digits and _")
        if found := [name for name in self.environment if name in (*SECRETS, *SECRETS_HERE)]:
            remedy = "export it where rlhf launch is typed, or put it into site kubernetes.secret"
            raise ValueError(f"environment: {', '.join(found)} is a secret; {remedy}")
        return self


def read_site(path: Path | None) -> Site:
    """From --site, RLHF_SITE or ~/.config/rlhf/site.yaml; all defaults where there is none.

    Raises ConfigError with a line for each thing that is wrong with the file.
    """
    named = path or (Path(os.environ[SITE]) if os.environ.get(SITE) else None)
    found = named or DEFAULT.expanduser()
    if named is None and not found.is_file():
        return Site()
    try:
        content = yaml.load(found.read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"site {found}: cannot be read ({error}); give --site FILE") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"site {found}: is no YAML ({' '.join(str(error).split())})") from error
    try:
        return Site.model_validate({} if content is None else content)
    except ValidationError as error:
        said = [(*map(str, each["loc"]), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
        lines = [f"site {found}: {'.'.join(at) + ': ' if at else ''}{what}" for *at, what in said]
        raise ConfigError(*lines) from error
