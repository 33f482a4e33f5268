"""What the reward models of several runs say of responses, of a run's or of files, in a file for `label select`.

`rlhf label select RUN|FILE… --rewards RUN` starts this as a child process:
python -m stages.opinions RUN|FILE… --rewards RUN… --output FILE
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.formats import as_record
from data.selection import Answered, answers_of_files, answers_of_run
from reward_models.scoring import RewardModel
from rlhf.config import Recipe
from rlhf.devices import settled_recipe
from rlhf.errors import ArtifactError, RLHFError
from rlhf.references import kind_of
from rlhf.store.artifact import Artifact, find_artifact, write_text
from rlhf.tokenization import load_tokenization
from rlhf.tracking.console import counter
from rlhf.types import Completion, Reward
from stages.command import quiet_libraries
from stages.rewards import named_reward, trained_model
from stages.targets import safe_recipe

AT_ONCE = 256  # responses that a reward model is asked about together


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


def opinions(asked: Sequence[Answered], rewards: Sequence[Path], output: Path) -> None:
    """Write a record for each prompt, its responses with a score of each reward model for each of them."""
    completions = [
        Completion(prompt, answer.text, (), (), answer.finished) for prompt, answers, _ in asked for answer in answers
    ]
    scores = []
    with counter("scoring", len(rewards) * len(completions)) as done:
        for each in rewards:
            reward, own = reward_of(each), []
            for begin in range(0, len(completions), AT_ONCE):
                own += reward(part := completions[begin : begin + AT_ONCE]).tolist()
                done(len(part))
            scores.append(own)
    of_each = iter(zip(*scores, strict=True))
    lines = []
    for prompt, answers, kind in asked:
        record = {"prompt": as_record(prompt)["prompt"], "responses": [answer.text for answer in answers]}
        record |= {} if kind is None else {"kind": kind}
        record |= {"scores": [next(of_each) for _ in answers], "finished": [answer.finished for answer in answers]}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(output, "".join(lines))


def answers_of(sources: Sequence[str], directory: str | None = None) -> list[Answered]:
    """Of a run, or of files."""
    if (Path(sources[0]) / "recipe.yaml").is_file():
        return answers_of_run(Path(sources[0]))
    return answers_of_files(sources, directory)


def main() -> int:
    """Score; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m stages.opinions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sources", nargs="+", help="a run, or files of responses")
    parser.add_argument("--rewards", type=Path, nargs="+", required=True, help="runs whose reward models are asked")
    parser.add_argument("--data-dir", help="where relative paths of files start")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    try:
        opinions(answers_of(options.sources, options.data_dir), options.rewards, options.output)
    except RLHFError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # who started this says so
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
