"""The figures of four steps of PPO with each estimator, as they were when they were last looked at.

    PYTHONPATH=. python tests/golden.py        write tests/baselines/*.json anew, and show what has changed

From models that nobody trained (tests/untrained.py), by the stage itself. A change that should not alter numerics
leaves the files as they are; one that should writes them anew, and its commit says why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.untrained import train, write_run

BASELINES = Path(__file__).with_name("baselines")
COMMON = ["ppo.steps=4", "ppo.prompts_per_step=8", "ppo.evaluate_every=0", "ppo.learning_rate=1e-3", "ppo.kl.coef=0.2"]
GROUPS = ["ppo.prompts_per_step=4", "ppo.responses_per_prompt=4"]
ESTIMATORS = {
    "gae": ["ppo.missing_eos_penalty=0.5"],
    # With seed 0 a draw of its third step is so near a boundary that rounding decides which token it is.
    "rloo": ["ppo.advantage=rloo", *GROUPS, "seed=1"],
    "reinforce++": ["ppo.advantage=reinforce++", "ppo.normalize_scores=running"],
    "grpo": ["ppo.advantage=grpo", *GROUPS, "ppo.kl.place=loss", "ppo.kl.estimator=k3", "ppo.clip_high=0.3"],
}


def curve(estimator: str, run: Path, output: Path) -> list[dict[str, float]]:
    """The figures of each step."""
    return train(run, output, [*COMMON, *ESTIMATORS[estimator]])


def baseline(estimator: str) -> Path:
    return BASELINES / f"ppo-{estimator.replace('+', 'p')}.json"


def main() -> None:
    """Write all baselines."""
    BASELINES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        run = write_run(Path(scratch))
        for estimator in ESTIMATORS:
            found, path = curve(estimator, run, Path(scratch) / estimator), baseline(estimator)
            before = json.loads(path.read_text()) if path.is_file() else found
            for new, old in zip(found, before, strict=False):
                for key in sorted(new.keys() | old.keys()):
                    if abs(new.get(key, 0.0) - old.get(key, 0.0)) > 1e-6:
                        print(f"{estimator} step {new['step']} {key}: {old.get(key)} is now {new.get(key)}")
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
