"""What the reward models of several runs say of the responses that one run has sampled, in a file for `label select`.

`rlhf label select RUN --rewards RUN` starts this as a child process: python -m stages.opinions RUN RUN… --output FILE
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.formats import as_record
from data.selection import answers_of_run
from reward_models.scoring import RewardModel
from rlhf.config import Recipe
from rlhf.devices import settled_recipe
from rlhf.errors import ArtifactError, RLHFError
from rlhf.references import kind_of
from rlhf.store.artifact import Artifact, find_artifact, write_text
from rlhf.tokenization import load_tokenization
from rlhf.types import Completion, Reward
from stages.command import quiet_libraries
from stages.rewards import named_reward, trained_model
from stages.targets import safe_recipe


def reward_of(run: Path) -> Reward:
    """A run's reward model, which is given text and answers in nats: models that took other tokens can be compared.

    Raises ArtifactError where there is none that is complete, and where it is a function or a server: a run may be
    somebody else's, and its manifest must neither run code here nor send responses away.
    """
    artifact = complete(run, "reward")
    used = artifact.manifest.get("use")
    if used is not None and kind_of(used) != "model":
        raise ArtifactError(
            f"{run}: its reward is the {kind_of(used)} {used}, which is not asked on a run's word; give a file with "
            "scores"
        )
    recipe = settled_recipe(safe_recipe(artifact, trust_remote_code=False), "evaluate")
    reward = of_model(artifact, run, recipe)
    return replace(reward, by_text=True) if isinstance(reward, RewardModel) else reward


def of_model(artifact: Artifact, run: Path, recipe: Recipe) -> Reward:
    """The model that a run trained, or the one that it uses, with raw scores."""
    if artifact.manifest.get("use") is None:
        return trained_model(artifact, load_tokenization(artifact.model, recipe.model), recipe)
    policy = load_tokenization(complete(run, "sft").model, recipe.model)
    return named_reward(str(artifact.model), policy, recipe)


def complete(run: Path, stage: str) -> Artifact:
    """What a stage of a run has made. Raises ArtifactError where it is not complete."""
    artifact = find_artifact(run / stage)
    if artifact is None:
        raise ArtifactError(f"{run}: its stage {stage} is not complete; run it, or leave this run out")
    return artifact


def opinions(run: Path, rewards: Sequence[Path], output: Path) -> None:
    """Write a record for each prompt of a run, its responses with a score of each reward model for each of them."""
    asked = answers_of_run(run)
    completions = [
        Completion(prompt, answer.text, (), (), answer.finished) for prompt, answers in asked for answer in answers
    ]
    scores = [reward_of(each)(completions).tolist() for each in rewards]
    of_each = iter(zip(*scores, strict=True))
    lines = []
    for prompt, answers in asked:
        record = {"prompt": as_record(prompt)["prompt"], "responses": [answer.text for answer in answers]}
        record |= {"scores": [next(of_each) for _ in answers], "finished": [answer.finished for answer in answers]}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(output, "".join(lines))


def main() -> int:
    """Score; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m stages.opinions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("rewards", type=Path, nargs="+", help="runs whose reward models are asked")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    try:
        opinions(options.run, options.rewards, options.output)
    except RLHFError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
