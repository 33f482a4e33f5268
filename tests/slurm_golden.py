"""What is rendered for Slurm, in tests/baselines/slurm/; who changes it on purpose writes them anew:

PYTHONPATH=. .venv/bin/python tests/slurm_golden.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.clusters.job import RunSpec
from launch.clusters.site import Site
from launch.clusters.slurm_script import SHARED, render
from launch.clusters.specification import Wanted, specify, with_generators
from rlhf.recipe import load_recipe

ROOT = Path(__file__).parents[1]
BASELINES = ROOT / "tests" / "baselines" / "slurm"
RUN, DIRECTORY = Path("/shared/me/runs/tiny"), Path("/shared/me")
ABRIDGED = "\n# ... launch/clusters/slurm.sh ...\n"
PLAIN = Site.model_validate({"python": "/shared/me/venv/bin/python"})
FULL = Site.model_validate(
    {
        "python": "/shared/me/venv/bin/python",
        "setup": ["module load cuda/12.8"],
        "environment": {"HF_HOME": "/shared/me/huggingface cache"},
        "network": {"interface": "ib0", "infiniband": "mlx5_0,mlx5_1", "port": 65535, "timeout_minutes": 15},
        "slurm": {
            "partition": "gpu",
            "account": "alignment",
            "qos": "normal",
            "constraint": "h100&ib",
            "reservation": "winter",
            "comment": "rlhf of me",
            "gpus": "gres",
            "gpu_type": "h100",
            "cpus_per_task": 12,
            "memory": "0",
            "hours": 24,
            "exclusive": True,
            "options": ["--mail-type=FAIL"],
            "servers": ["--switches=1"],
            "srun": ["--mpi=none", "--cpu-bind=none"],
        },
    }
)
PYXIS = Site.model_validate(
    {"python": "python", "slurm": {"container": {"image": "registry/rlhf:1", "mounts": ["/data:/data:ro"]}}}
)
APPTAINER = Site.model_validate(
    {"python": "python", "slurm": {"container": {"engine": "apptainer", "image": "/shared/rlhf.sif"}}}
)


def specified(site: Site, **wanted: object) -> RunSpec:
    """A specification as the command makes it."""
    asked = Wanted(**wanted)  # type: ignore[arg-type]
    return specify(with_generators(load_recipe(ROOT / "tests/recipes/tiny.yaml"), asked), RUN, DIRECTORY, asked, site)


CASES: dict[str, tuple[RunSpec, Site, str]] = {
    "plain": (specified(PLAIN, nodes="2", processes=1), PLAIN, "ppo.sbatch"),
    "site": (specified(FULL, nodes="sft=1,ppo=4", gpus=8, retries=5, hours=1.5, memory=900), FULL, "ppo.sbatch"),
    "generators": (specified(FULL, nodes="2", gpus=8, generators="3", generator_gpus=4), FULL, "ppo.sbatch"),
    "colocated": (specified(PLAIN, gpus=8, generators="colocated", generator_gpus=2, cpus=96), PLAIN, "ppo.sbatch"),
    "one-allocation": (specified(PLAIN, nodes="sft=1,ppo=4", gpus=8, one_allocation=True), PLAIN, "chain.sbatch"),
    "seeds": (specified(APPTAINER, gpus=1, seeds=(1, 2, 3)), APPTAINER, "reward.sbatch"),
    "container": (specified(PYXIS, nodes="2", gpus=8), PYXIS, "sft.sbatch"),
}


def text(case: str) -> str:
    """One script; of all but the plain one without the part that they share."""
    spec, site, name = CASES[case]
    whole = next(each.text for each in render(spec, site) if each.name == name)
    return whole if case == "plain" else whole.replace(SHARED.read_text(encoding="utf-8"), ABRIDGED)


if __name__ == "__main__":
    for each in CASES:
        (BASELINES / f"{each}.sbatch").write_text(text(each), encoding="utf-8")
        sys.stdout.write(f"{each}\n")
