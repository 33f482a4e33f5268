"""From a recipe, and what somebody asks for beside it, to the specification of a run. Pure: nothing is looked at."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from launch.clusters.hosts import Host
from launch.clusters.job import JobSpec, Role, RunSpec
from launch.clusters.site import Site
from launch.local import WAITING
from rlhf.config import Recipe
from rlhf.errors import ConfigError
from rlhf.recipe import resolved_yaml
from rlhf.references import kind_of
from stages.lineage import STAGES, used_by

GENERATOR_PORT = 8000
ADDRESSES = "ppo.generation.server.addresses"
COLOCATED = "colocated"
# What no working folder, and no thread that spins while it waits, is to spoil.
ENVIRONMENT = {"PYTHONSAFEPATH": "1", **WAITING, "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for beside a recipe."""

    stages: tuple[str, ...] = tuple(STAGES)
    nodes: str = "1"  # 4, or sft=1,ppo=4
    gpus: int = 0  # of each node
    processes: int | None = None  # of each node, on CPUs; None: as the recipe says
    generators: str | None = None  # nodes that sample for PPO; or `colocated`
    generator_gpus: int | None = None  # of each generator; None: as many as of a node
    generator_python: str | None = None  # the interpreter of vLLM's environment
    reward_server: str | None = None  # the command that serves reward.use
    retries: int = 3
    hours: float | None = None
    cpus: int | None = None  # of each node
    memory: int | None = None  # GiB of each node
    hosts: tuple[Host, ...] = ()
    seeds: tuple[int, ...] = ()  # a run of each
    one_allocation: bool = False


def specify(recipe: Recipe, run: Path, directory: Path, wanted: Wanted, site: Site) -> RunSpec:
    """The specification of a run; its recipe is that of `with_generators`, and lies in RUN/recipe.yaml.

    Raises ConfigError with a line for each thing that cannot be.
    """
    nodes = nodes_of(wanted)
    problems = [*_problems_of_generators(wanted, nodes), *_problems_of_reward_server(recipe, wanted)]
    if problems:
        raise ConfigError(*problems)
    jobs = []
    for stage in wanted.stages:
        trainer = trainer_of(recipe, run, stage, nodes[stage], wanted, site)
        roles = [*servers_of(recipe, run, stage, trainer, wanted, site), trainer]
        after = tuple(name for name in STAGES[stage].inputs if name in wanted.stages)
        grace = recipe.checkpoint.grace_seconds
        jobs.append(JobSpec(stage, tuple(roles), after, wanted.retries, grace, wanted.hours))
        problems += _problems_of_processes(recipe, stage, trainer)
    if problems:
        raise ConfigError(*problems)
    return RunSpec(
        recipe.name,
        run,
        directory,
        tuple(jobs),
        hosts=wanted.hosts,
        seeds=wanted.seeds,
        one_allocation=wanted.one_allocation,
        recipe=resolved_yaml(recipe),
    )


def with_generators(recipe: Recipe, wanted: Wanted) -> Recipe:
    """The recipe that runs: with generators PPO samples by vLLM, whose addresses come once they are known."""
    if wanted.generators is None:
        return recipe
    generation = recipe.ppo.generation.model_dump() | {"engine": "vllm", "weights": "server"}
    if not generation["server"]["addresses"]:
        generation["server"]["addresses"] = [f"http://127.0.0.1:{GENERATOR_PORT}"]
    ppo = type(recipe.ppo).model_validate({**recipe.ppo.model_dump(), "generation": generation})
    return recipe.model_copy(update={"ppo": ppo})


def nodes_of(wanted: Wanted) -> dict[str, int]:
    """Nodes of each stage: of `4` all, of `sft=1,ppo=4` those that it names, and the others one."""
    found = dict.fromkeys(STAGES, 1)
    for part in wanted.nodes.split(","):
        stage, equals, number = part.strip().rpartition("=")
        if not re.fullmatch(r"[1-9]\d{0,5}", number):
            raise ConfigError(f"--nodes={wanted.nodes}: write a number of nodes, or one by stage, as in sft=1,ppo=4")
        if equals and stage not in STAGES:
            raise ConfigError(f"--nodes={wanted.nodes}: {stage} is not a stage; use {', '.join(STAGES)}")
        for name in [stage] if equals else STAGES:
            found[name] = int(number)
    return found


def trainer_of(recipe: Recipe, run: Path, stage: str, nodes: int, wanted: Wanted, site: Site) -> Role:
    """Those that train; one process where the recipe names something in the stage's place."""
    command = (interpreter(site), "-m", f"stages.{stage}", "--recipe", str(run / "recipe.yaml"), "--run-dir", str(run))
    environment = dict(ENVIRONMENT)
    gpus = wanted.gpus
    if stage == "ppo" and wanted.generators == COLOCATED:
        gpus -= wanted.generator_gpus or 0
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(gpus)))
    processes = gpus or wanted.processes or _from_recipe(recipe, stage, nodes)
    if used_by(recipe, stage):
        nodes, processes, gpus = 1, 1, min(gpus, 1)
    if wanted.cpus:
        environment["OMP_NUM_THREADS"] = str(max(1, wanted.cpus // processes))
    return Role("trainer", nodes, processes, gpus, command, environment, wanted.cpus, wanted.memory)


def _from_recipe(recipe: Recipe, stage: str, nodes: int) -> int:
    processes = recipe.parallelism_of(stage).processes
    return 1 if processes == "auto" else max(1, processes // nodes)


def servers_of(recipe: Recipe, run: Path, stage: str, trainer: Role, wanted: Wanted, site: Site) -> Iterator[Role]:
    """Those that answer a stage's trainer."""
    if wanted.reward_server and asks_reward(recipe, stage):
        port = urlsplit(recipe.reward.use or "").port
        command = ("sh", "-c", wanted.reward_server)
        yield Role("reward", trainer.nodes, 1, 0, command, ENVIRONMENT, port=port, colocated=True)
    if wanted.generators is None or stage != "ppo":
        return
    beside = wanted.generators == COLOCATED
    gpus = (
        wanted.generator_gpus or 0
        if beside
        else wanted.gpus
        if wanted.generator_gpus is None
        else wanted.generator_gpus
    )
    nodes = trainer.nodes if beside else int(wanted.generators)
    host = "127.0.0.1" if beside and nodes == 1 else "0.0.0.0"  # of several, each process asks all
    serve = [interpreter(site), "-P", "-m", "launch.cli", "generation", "serve", str(run), "--wait"]
    serve += ["--host", host, "--port", str(GENERATOR_PORT)]
    if wanted.generator_python:
        serve += ["--python", wanted.generator_python]
    if gpus > 1:
        serve += ["--", "--tensor-parallel-size", str(gpus)]
    environment = dict(ENVIRONMENT)
    if beside:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(trainer.gpus + number) for number in range(gpus))
    yield Role(
        *("generator", nodes, 1, gpus, tuple(serve), environment, wanted.cpus, wanted.memory),
        port=GENERATOR_PORT,
        health="/health",
        announced=ADDRESSES,
        colocated=beside,
    )


def asks_reward(recipe: Recipe, stage: str) -> bool:
    """Whether a stage asks the reward that the recipe names: it is examined, and scores responses from then on."""
    return bool(recipe.reward.use) and stage in ("reward", "ppo", "evaluate")


def interpreter(site: Site) -> str:
    """Of our own code on every node."""
    return site.python or sys.executable


def site_on(scheduler: str, site: Site) -> Site:
    """A site as a scheduler sees it: in Slurm's containers the interpreter is the image's own."""
    in_image = scheduler == "slurm" and site.slurm.container is not None and site.python is None
    return site.model_copy(update={"python": "python"}) if in_image else site


def _problems_of_generators(wanted: Wanted, nodes: dict[str, int]) -> Iterator[str]:
    given = wanted.generators
    if given is None:
        return
    if "ppo" not in wanted.stages:
        yield f"--generators={given}: PPO is not among the stages; leave it out, or choose stages with ppo"
    if given == COLOCATED:
        if nodes["ppo"] > 1 and len(wanted.hosts) < 2:  # whose addresses nobody knows before the scheduler's job begins
            yield (
                f"--generators=colocated: serves the node it is on, and PPO has {nodes['ppo']}; use --nodes ppo=1, "
                "generators on nodes of their own, as in --generators 1, or hosts that ssh reaches"
            )
        if wanted.gpus and not 0 < (wanted.generator_gpus or 0) < wanted.gpus:
            yield (
                f"--generators=colocated: needs some of the {wanted.gpus} GPUs of a node, and leaves some to PPO; "
                "say how many with --generator-gpus"
            )
    elif not re.fullmatch(r"[1-9]\d{0,3}", given):
        yield f"--generators={given}: write a number of nodes, or colocated"
    elif (wanted.generator_gpus or 0) > wanted.gpus:
        yield f"--generator-gpus={wanted.generator_gpus}: a node has --gpus {wanted.gpus}; use at most as many"


def _problems_of_reward_server(recipe: Recipe, wanted: Wanted) -> Iterator[str]:
    if wanted.reward_server is None:
        return
    use = recipe.reward.use or ""
    where = urlsplit(use) if use and kind_of(use) == "server" else None
    if where is None:
        yield "--reward-server: reward.use names no server; set it, for example reward.use=http://127.0.0.1:8100/score"
    elif where.hostname not in ("127.0.0.1", "localhost") or where.port is None:
        yield (
            f"--reward-server: reward.use={use} is not asked on its own node; use an address of the form "
            "http://127.0.0.1:PORT/PATH, for one server starts beside the trainers of each node"
        )


def _problems_of_processes(recipe: Recipe, stage: str, trainer: Role) -> Iterator[str]:
    wanted, found = recipe.parallelism_of(stage).processes, trainer.nodes * trainer.processes
    if wanted not in ("auto", found) and not used_by(recipe, stage):
        yield (
            f"{stage}: parallelism.processes={wanted} where there are {found} ({trainer.nodes} x {trainer.processes}); "
            "use --nodes with --gpus or --processes of as many, or parallelism.processes=auto"
        )
