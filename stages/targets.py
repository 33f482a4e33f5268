"""What RUN or MODEL on a command line means: a policy of a run, a model's directory, or a hub id. Loads no torch.

runs/tiny, tiny        a run, by path or by its name under runs/: its aligned policy, else its SFT model
tiny/sft               a stage of it
tiny:best, tiny/ppo/best   the policy with the best held-out score
./Qwen2.5-0.5B-Instruct, org/name, org/name@COMMIT     a model
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rlhf.config import ModelConfig, Recipe
from rlhf.errors import ArtifactError
from rlhf.store.artifact import MANIFEST, Artifact, find_artifact
from rlhf.store.recipes import recipe_of

RUNS = Path("runs")
POLICIES = ("ppo", "sft")  # stages that make a policy, the last of the chain first
BEST = "best"
_HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[^@:/]+))?")


@dataclass(frozen=True)
class Target:
    """A policy to load."""

    label: str  # for people
    model: str  # a directory or a hub id
    recipe: Recipe  # how it was made; of a model that is no run's, the defaults
    run: Path | None = None

    @property
    def reward(self) -> Artifact | None:
        """The reward of its run, if it has one."""
        return find_artifact(self.run / "reward") if self.run else None


def find_target(name: str, stage: str | None = None, trust_remote_code: bool = False) -> Target:
    """The policy that a RUN or MODEL names; stage: of a run. ArtifactError where there is none.

    trust_remote_code: whether code that comes with a model may run, whatever a run's own recipe says of it.
    """
    own = Recipe(model=ModelConfig(trust_remote_code=trust_remote_code))
    plain, colon, best = name.rpartition(":")
    if colon and best == BEST:
        name, wants_best = plain, True
    else:
        wants_best = False
    for path in (Path(name), RUNS / name):
        if path.is_dir() and (found := _in_directory(path, name, stage, wants_best, own)):
            return found
    if (hub := _HUB_ID.fullmatch(name)) and not name.startswith((".", f"{RUNS}/")) and not Path(name).exists():
        _no_stage(name, stage, wants_best)
        return Target(name, hub["repository"], Recipe(model=own.model.model_copy(update={"revision": hub["revision"]})))
    known = ", ".join(sorted(path.parents[1].name for path in RUNS.glob(f"*/sft/{MANIFEST}"))) or "none"
    raise ArtifactError(f"{name}: no run, stage or model; give a directory, org/name or a run (runs/ has: {known})")


def _in_directory(path: Path, name: str, stage: str | None, wants_best: bool, own: Recipe) -> Target | None:
    trusts = own.model.trust_remote_code
    if is_model(path):
        _no_stage(name, stage, wants_best)
        made = find_artifact(path.resolve().parent)
        if made is None:
            return Target(name, str(path), own)
        return Target(name, str(path), safe_recipe(made, trusts), path.resolve().parents[1])
    if artifact := find_artifact(path):
        _no_stage(name, stage, False)
        return _of_stage(artifact, name, wants_best, trusts)
    stages = [made for each in POLICIES if (made := find_artifact(path / each))]
    chosen = [made for made in stages if stage in (None, made.directory.name)]
    if chosen:
        return _of_stage(chosen[0], f"{name}/{chosen[0].directory.name}", wants_best, trusts)
    if stages or any((path / each).is_dir() for each in POLICIES):
        complete = ", ".join(made.directory.name for made in stages) or "none"
        wanted = f"no complete policy of stage {stage}" if stage else "no complete policy"
        raise ArtifactError(f"{path}: holds {wanted} (complete: {complete}); run it further")
    return None


def _of_stage(artifact: Artifact, label: str, wants_best: bool, trusts: bool) -> Target:
    stage = str(artifact.manifest.get("stage"))
    if stage not in POLICIES:
        raise ArtifactError(f"{label}: {stage} makes no policy; choose its run's {' or '.join(POLICIES)}")
    model = artifact.model
    if wants_best:
        model, label = artifact.directory / BEST, f"{label}:{BEST}"
        if not is_model(model):
            raise ArtifactError(f"{model}: not there; a run keeps its best policy where ppo.evaluate_every is not 0")
    return Target(label, str(model), safe_recipe(artifact, trusts), artifact.directory.resolve().parent)


def _no_stage(name: str, stage: str | None, wants_best: bool) -> None:
    if stage is not None:
        raise ArtifactError(f"{name}: is no run, so it has no --stage {stage}; leave that out")
    if wants_best:
        raise ArtifactError(f"{name}: is no run or stage, so it has no best; leave :{BEST} out")


def is_model(path: Path) -> bool:
    """Whether a directory holds a model or an adapter."""
    return (path / "config.json").is_file() or (path / "adapter_config.json").is_file()


def safe_recipe(artifact: Artifact, trust_remote_code: bool) -> Recipe:
    """The recipe that made an artifact, with the kernels left to the device at hand.

    A run may be somebody else's, so whether code that comes with a model runs is for the one who loads it to say.
    """
    recipe = recipe_of(artifact, "give the model's own directory, copied elsewhere")
    changes = {"attention": "auto", "trust_remote_code": trust_remote_code}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})
