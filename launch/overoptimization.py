"""The runs of `rlhf study overoptimization`: reward models of several data sizes, PPO under several KL coefficients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.jobs import Job, Workers
from rlhf.analysis.overoptimization import Setting
from rlhf.config import Recipe
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe


@dataclass(frozen=True)
class Sweep:
    """What is varied around a recipe, and where its runs go."""

    recipe: str
    pairs: Sequence[int]  # comparisons that a reward model is trained on
    coefficients: Sequence[float]  # of the KL penalty
    seeds: Sequence[int]
    steps: int
    evaluate_every: int
    folder: Path
    overrides: Sequence[str] = ()

    def check(self) -> Recipe:
        """The recipe. Raises ConfigError where it names no truth to compare the reward model with."""
        recipe = load_recipe(self.recipe, self.overrides)
        if recipe.evaluate.gold is None:
            raise ConfigError(
                f"{self.recipe}: evaluate.gold=null: over-optimisation is seen where the truth is known; name it, for "
                "example evaluate.gold=data.toy:gold"
            )
        if len(recipe.data.comparisons) > 1:
            raise ConfigError(
                f"{self.recipe}: data.comparisons has {len(recipe.data.comparisons)} sources: the study varies the "
                "count of one; leave one"
            )
        if recipe.reward.use:
            raise ConfigError(f"{self.recipe}: reward.use={recipe.reward.use}: the study trains its own; remove it")
        return recipe

    def settings(self) -> Iterator[Setting]:
        """Every PPO run of the sweep."""
        for seed, pairs, coefficient in itertools.product(self.seeds, self.pairs, self.coefficients):
            yield Setting(pairs, coefficient, seed)

    def run(self, workers: Workers) -> None:
        """Run what is not complete: the SFT models, then the reward models, then PPO."""
        gold = self.check().evaluate.gold
        workers.run([self._sft(seed) for seed in self.seeds], "SFT")
        workers.run([self._reward(seed, pairs) for seed in self.seeds for pairs in self.pairs], "reward models")
        workers.run([self._ppo(setting, str(gold)) for setting in self.settings()], "PPO")

    def place(self, setting: Setting) -> Path:
        """The run directory of a PPO run."""
        return self._reward_run(setting.seed, setting.pairs) / f"coefficient-{setting.coefficient:g}"

    def _reward_run(self, seed: int, pairs: int) -> Path:
        return self.folder / f"seed-{seed}" / f"pairs-{pairs}"

    def _sft(self, seed: int) -> Job:
        run = self.folder / f"seed-{seed}" / "start"
        return self._job("sft", run, f"SFT, seed {seed}", [f"seed={seed}"])

    def _reward(self, seed: int, pairs: int) -> Job:
        fields = [f"seed={seed}", self._start(seed), f"data.comparisons.0.count={pairs}"]
        return self._job("reward", self._reward_run(seed, pairs), f"reward model, seed {seed}, {pairs:,} pairs", fields)

    def _ppo(self, setting: Setting, gold: str) -> Job:
        fields = [
            f"seed={setting.seed}",
            self._start(setting.seed),
            f"reward.use={self._reward_run(setting.seed, setting.pairs) / 'reward' / 'model'}",
            f"ppo.kl.coef={setting.coefficient}",
            f"ppo.steps={self.steps}",
            f"ppo.evaluate_every={self.evaluate_every}",
            f"ppo.held_out.judge={gold}",
            "ppo.held_out.patience=null",  # trajectories of one length
        ]
        title = f"PPO, seed {setting.seed}, {setting.pairs:,} pairs, coefficient {setting.coefficient:g}"
        return self._job("ppo", self.place(setting), title, fields)

    def _start(self, seed: int) -> str:
        return f"sft.use={self.folder / f'seed-{seed}' / 'start' / 'sft' / 'model'}"

    def _job(self, stage: str, run: Path, title: str, fields: Sequence[str]) -> Job:
        arguments = [stage, self.recipe, *self.overrides, *fields, "--run", str(run)]
        return Job(title, arguments, run.with_name(f"{run.name}-{stage}.log"))
