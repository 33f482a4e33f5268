"""Proxy and gold over the distance from the reference, as Gao et al. 2023 plot them. Loads no torch.

"Scaling Laws for Reward Model Overoptimization", section 3: with d = sqrt(KL(policy || reference)) the gold score under
reinforcement learning follows R(d) = R(0) + d (alpha - beta log d), rising first and falling later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf.analysis.metrics import METRICS, read_metrics
from rlhf.analysis.statistics import mean, standard_error
from rlhf.errors import ArtifactError


class Setting(NamedTuple):
    """One PPO run of a sweep."""

    pairs: int  # comparisons behind its reward model
    coefficient: float  # of the KL penalty
    seed: int


@dataclass(frozen=True)
class Trajectory:
    """Held-out means of a run at its evaluations, the SFT model first."""

    setting: Setting
    steps: Sequence[int]
    kl: Sequence[float]  # nats per response
    proxy: Sequence[float]  # the reward that PPO maximised, as it was normalised
    gold: Sequence[float]  # the truth, in [0, 1]


@dataclass(frozen=True)
class Outcome:
    """The runs of all seeds under one setting."""

    pairs: int
    coefficient: float
    trajectories: Sequence[Trajectory]

    def means(self, name: str) -> list[float]:
        """Means over seeds of kl, proxy or gold at each evaluation."""
        return [mean(values) for values in zip(*(getattr(t, name) for t in self.trajectories), strict=True)]

    def summary(self) -> dict[str, Any]:
        """Where proxy and gold were highest, and how much gold was lost behind its peak; means over seeds.

        The loss is no less than 0, for the peak is that of the same means; its standard error is the seeds' spread.
        """
        gold, proxy, kl = self.means("gold"), self.means("proxy"), self.means("kl")
        peak = int(np.argmax(gold))
        # At the step where the seeds' mean is highest: a run's own highest evaluation would be so by luck, too.
        lost = [t.gold[peak] - t.gold[-1] for t in self.trajectories]
        steps = self.trajectories[0].steps
        return {
            "pairs": self.pairs,
            "coefficient": self.coefficient,
            "seeds": [t.setting.seed for t in self.trajectories],
            "gold_start": gold[0],
            "gold_peak": gold[peak],
            "gold_peak_step": steps[peak],
            "gold_peak_kl": kl[peak],
            "gold_last": gold[-1],
            "gold_lost": mean(lost),
            "gold_lost_stderr": standard_error(lost),
            "proxy_peak_step": steps[int(np.argmax(proxy))],
            "proxy_last": proxy[-1],
            "kl_last": kl[-1],
            "kl_largest": max(value for t in self.trajectories for value in t.kl),
        }


class Fit(NamedTuple):
    """R(d) = start + d (alpha - beta log d)."""

    start: float
    alpha: float
    beta: float

    def __call__(self, distance: float) -> float:
        """The gold score at a distance, the root of nats."""
        return self.start + (distance * (self.alpha - self.beta * float(np.log(distance))) if distance > 0 else 0.0)


def read_trajectory(run: Path, setting: Setting) -> Trajectory:
    """The evaluations of a complete PPO stage. Raises ArtifactError where it has none."""
    path = run / "ppo" / METRICS
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; run the study again, it goes on where it was")
    figures = read_metrics(path)
    if not {"eval/scores", "eval/judge", "eval/kl"} <= set(figures):
        raise ArtifactError(f"{path}: no held-out judge's scores; run the study again into an empty folder")
    steps = sorted(figures["eval/judge"])
    columns = ([figures[key][step] for step in steps] for key in ("eval/kl", "eval/scores", "eval/judge"))
    return Trajectory(setting, steps, *columns)


def gather(trajectories: Iterable[Trajectory]) -> list[Outcome]:
    """Trajectories by setting, seeds together."""
    groups: dict[tuple[int, float], list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.setting[:2], []).append(trajectory)
    return [Outcome(*key, group) for key, group in sorted(groups.items())]


def fit(outcomes: Sequence[Outcome]) -> dict[int, Fit]:
    """For each data size whose policies moved, the curve through its runs' gold scores by least squares."""
    found = {}
    for pairs in sorted({outcome.pairs for outcome in outcomes}):
        runs = [t for outcome in outcomes if outcome.pairs == pairs for t in outcome.trajectories]
        start = mean([t.gold[0] for t in runs])
        # A sample's KL may fall below zero while the policy has hardly moved.
        points = [(k**0.5, g) for t in runs for k, g in zip(t.kl[1:], t.gold[1:], strict=True) if k > 1e-3]
        if len(points) < 2:
            continue  # the policy has not moved
        distance, gold = (np.array(column) for column in zip(*points, strict=True))
        matrix = np.stack([distance, -distance * np.log(distance)], axis=1)
        (alpha, beta), *_ = np.linalg.lstsq(matrix, gold - start, rcond=None)
        found[pairs] = Fit(start, float(alpha), float(beta))
    return found


def report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All figures, as they go to the json."""
    curves: Mapping[int, Fit] = fit(outcomes)
    return {
        "settings": [outcome.summary() for outcome in outcomes],
        "fits": [{"pairs": pairs, **curve._asdict()} for pairs, curve in curves.items()],
        "trajectories": [
            {**t.setting._asdict(), "steps": t.steps, "kl": t.kl, "proxy": t.proxy, "gold": t.gold}
            for outcome in outcomes
            for t in outcome.trajectories
        ],
    }
