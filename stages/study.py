"""PPO's real code in a world small enough to count, compared with the optimum that theory knows.

`rlhf study optimum` starts this as a child process: python -m stages.study --variants rloo --betas 0.5 --seeds 1
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from rlhf.analysis.optimum import Array, objective_gap, optimum, total_variation
from rlhf.analysis.optimum_picture import Line, draw
from rlhf.config import PpoConfig, Recipe
from rlhf.engine.ddp import DdpEngine
from rlhf.errors import ArtifactError, RLHFError
from rlhf.kl import FixedController
from rlhf.ppo.experience import Actors, collect, own_rows
from rlhf.ppo.targets import find_targets
from rlhf.ppo.update import update
from rlhf.store.artifact import write_json
from rlhf.tracking.console import StageProgress, wide_console
from stages.cast import PromptOrder, optimizer_options
from stages.command import quiet_libraries
from stages.problems import report
from stages.sampling import native_generator
from stages.small_world import PROMPTS, SmallWorld
from stages.variants import expected, settings

EVERY = 10  # steps between two measurements


@dataclass(frozen=True)
class Distance:
    """How far a policy is from the optimum after a step."""

    step: int
    tv: float  # total variation, mean over prompts
    worst: float  # of a prompt
    gap: float  # share of the objective's possible gain that is missing


@dataclass
class Course:
    """One seed of one variant."""

    seed: int
    seconds: float = 0.0  # of a processor
    distances: list[Distance] = field(default_factory=list)
    policy: Array = field(default_factory=lambda: np.zeros(0))  # [prompts, responses], at the end


def learn(
    world: SmallWorld,
    config: PpoConfig,
    beta: float,
    every: int = EVERY,
    watch: Callable[[Distance], None] | None = None,
) -> Course:
    """Run PPO in a world, and measure its policy every so many steps against the optimum of a beta.

    beta is that of theory; config.kl.coef, which PPO is given, should be the same.
    """
    recipe = Recipe(seed=world.seed, ppo=config)
    policy = DdpEngine(world.policy, optimizer_options(recipe, "policy"))
    value = DdpEngine(world.value, optimizer_options(recipe, "value")) if config.has_critic else None
    generator = native_generator(world.policy, world.tokenization, recipe)
    critic = value.module if value else None
    actors = Actors(world.policy, world.reference, critic, generator, world.reward, world.tokenization)
    kl, order, rows = FixedController(config.kl.coef), PromptOrder(PROMPTS, recipe.seed), own_rows(config)
    reference = world.distribution(world.reference)
    best = optimum(reference, world.rewards, beta)
    course, started = Course(world.seed), time.process_time()
    for step in range(config.steps + 1):
        if step:
            key = (recipe.seed, step)
            experience, _ = collect(order.asked(step, rows, config), rows, actors, config, key)
            targets = find_targets(experience, config, kl.coef, None)
            update(policy, value, experience, targets, config, key)
            generator.load(world.policy)
        if step % every == 0 or step == config.steps:
            course.policy = world.distribution(world.policy)
            apart = total_variation(course.policy, best)
            gap = objective_gap(course.policy, reference, world.rewards, beta)
            course.distances.append(Distance(step, float(apart.mean()), float(apart.max()), gap))
            if watch:
                watch(course.distances[-1])
    course.seconds = time.process_time() - started
    return course


@dataclass
class Study:
    """All courses, of which those that an earlier study left in the file are taken over."""

    output: Path
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """The results."""
        return self.output / "optimum.json"

    def load(self) -> None:
        """Take over the file's courses. Raises ArtifactError where it holds none."""
        if not self.file.is_file():
            return
        try:
            self.records = json.loads(self.file.read_text(encoding="utf-8"))["courses"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self.file}: no results of this study; give another --output") from error

    def run(self, plan: Sequence[tuple[str, float, int]], steps: int | None) -> list[dict[str, Any]]:
        """Run what is missing of a plan of (variant, beta, seed); the plan's records."""
        configs = [settings(name, beta, steps) for name, beta, _ in plan]
        found = [self.find(*each, config) for each, config in zip(plan, configs, strict=True)]
        done = sum(config.steps for config, record in zip(configs, found, strict=True) if record)
        with StageProgress("optimum", sum(config.steps for config in configs), done=done) as progress:
            for place, ((name, _, seed), config) in enumerate(zip(plan, configs, strict=True)):
                if found[place] is not None:
                    continue

                def show(distance: Distance, start: int = done) -> None:
                    progress.update(start + distance.step, {"TV": distance.tv, "gap": distance.gap})

                found[place] = record = one(name, config, seed, show)
                self.records.append(record)
                write_json(self.file, {"courses": self.records})
                done += config.steps
        return [record for record in found if record is not None]

    def find(self, name: str, beta: float, seed: int, config: PpoConfig) -> dict[str, Any] | None:
        """The record of a course that was run with the very same settings."""
        wanted = {"variant": name, "beta": beta, "seed": seed, "settings": config.model_dump(mode="json")}
        same = (record for record in self.records if wanted.items() <= record.items())
        return next(same, None)


def one(name: str, config: PpoConfig, seed: int, watch: Callable[[Distance], None]) -> dict[str, Any]:
    """Run a variant in the world of a seed; its record."""
    world, beta = SmallWorld(seed), config.kl.coef
    reference = world.distribution(world.reference)
    course = learn(world, config, beta, watch=watch)
    wanted = expected(config, reference, world.rewards, world.responses)
    best = optimum(reference, world.rewards, beta)
    return {
        "variant": name,
        "beta": beta,
        "seed": seed,
        "settings": config.model_dump(mode="json"),
        "seconds": course.seconds,
        "expected_tv": float(total_variation(wanted, best).mean()),  # of where it should settle, from the optimum
        "from_expected": float(total_variation(course.policy, wanted).mean()),
        "distances": [asdict(distance) for distance in course.distances],
    }


def table(records: Sequence[dict[str, Any]]) -> Table:
    """A row for each variant and beta: means over seeds, and the worst seed."""
    shown = Table(title="PPO and the known optimum", title_justify="left")
    shown.add_column("variant", no_wrap=True)
    shown.add_column("beta", justify="right")
    columns = (
        "seeds",
        "TV mean",
        "worst seed",
        "worst prompt",
        "gap mean",
        "worst",
        "expected TV",
        "TV from there",
        "s",
    )
    for name in columns:
        shown.add_column(name, justify="right")
    for name, beta in dict.fromkeys((record["variant"], record["beta"]) for record in records):
        own = [record for record in records if (record["variant"], record["beta"]) == (name, beta)]
        last = [record["distances"][-1] for record in own]
        tv, gap = [end["tv"] for end in last], [end["gap"] for end in last]
        cells = [f"{np.mean(tv):.4f}", f"{max(tv):.4f}", f"{max(end['worst'] for end in last):.4f}"]
        cells += [f"{100 * np.mean(gap):.2f} %", f"{100 * max(gap):.2f} %"]
        cells += [f"{np.mean([record[key] for record in own]):.4f}" for key in ("expected_tv", "from_expected")]
        shown.add_row(name, f"{beta:g}", str(len(own)), *cells, f"{np.mean([r['seconds'] for r in own]):.0f}")
    return shown


def lines(records: Sequence[dict[str, Any]]) -> dict[float, list[Line]]:
    """What the picture shows of each beta."""
    panels: dict[float, list[Line]] = {}
    for beta in dict.fromkeys(record["beta"] for record in records):
        for name in dict.fromkeys(record["variant"] for record in records):
            own = [r["distances"] for r in records if (r["variant"], r["beta"]) == (name, beta)]
            steps = [distance["step"] for distance in own[0]]
            panels.setdefault(beta, []).append(Line(name, steps, [[d["tv"] for d in course] for course in own]))
    return panels


def main() -> int:
    """Run the study; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m stages.study", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--variants", required=True, help="names with commas between them; stages/variants.py has them")
    parser.add_argument("--betas", required=True)
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/studies/optimum"))
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)  # there is nothing to share
    names, betas = options.variants.split(","), [float(beta) for beta in options.betas.split(",")]
    plan = [(n, b, int(s)) for n in names for b in betas for s in options.seeds.split(",")]
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        study = Study(options.output)
        study.load()
        records = study.run(plan, options.steps)
        draw(lines(records), options.output / "optimum.png")
    except RLHFError as error:
        report(error.problems)
        return 2
    except OSError as error:
        report([f"{error}; once that is mended, the same command goes on"])
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on behind the last seed that is complete", file=sys.stderr)
        return 130
    console = wide_console()
    console.print(table(records))
    console.print(f"{study.file}, {options.output / 'optimum.png'}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
