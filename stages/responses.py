"""Responses of a run's policy to the run's prompts, with the reward's scores: what to label next.

Comparisons are held out by their prompt: votes on prompts of the training part train a reward model, those on the
others measure it. What evaluations sample is all held out. `rlhf label sample RUN` starts this as a child process:
python -m stages.responses RUN
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data import sources
from data.formats import as_record
from data.mapped import Selection
from rlhf.config import Recipe
from rlhf.errors import ArtifactError, ConfigError, DataError, RLHFError
from rlhf.models import context_of
from rlhf.store.artifact import write_text
from rlhf.tracking.console import counter
from rlhf.types import Completion, Prompt
from stages.chat import scoring_of
from stages.command import quiet_libraries
from stages.sampling import sample
from stages.speakers import Speaker
from stages.targets import Target, find_target


@dataclass(frozen=True)
class Sampled:
    """Records for `rlhf label push` and `select`, and what was left out."""

    label: str  # of the policy
    records: list[dict[str, Any]]
    alike: int  # prompts whose responses are all the same
    too_long: int  # prompts that leave no room for a response

    def figures(self, output: Path) -> dict[str, Any]:
        """The account, for programs."""
        return {
            "policy": self.label,
            "prompts": len(self.records),
            "responses": sum(len(record["responses"]) for record in self.records),
            "scored": all("scores" in record for record in self.records),
            "alike": self.alike,
            "too_long": self.too_long,
            "output": str(output),
        }

    def told(self, output: Path) -> list[str]:
        """The account, for people."""
        figures = self.figures(output)
        lines = [f"{figures['responses']:,} responses of {self.label} to {figures['prompts']:,} prompts"]
        if self.alike:
            lines.append(f"left out: {self.alike:,} prompts whose responses are all the same")
        if self.too_long:
            lines.append(f"left out: {self.too_long:,} prompts that leave no room for a response")
        following = f"rlhf label push {output} --project TITLE"
        if figures["scored"]:
            following += f", or of these the most telling: rlhf label select {output} --budget N --output FILE"
        return [*lines, f"wrote {output}; to label: {following}"]


def responses(options: argparse.Namespace) -> Sampled:
    """Sample and score. Raises ArtifactError where there is no such run, DataError where nothing differs."""
    target = find_target(options.target, options.stage, options.trust_remote_code)
    if target.run is None:
        raise ArtifactError(f"{options.target}: is no run, whose recipe says to which prompts; give one")
    speaker = Speaker(target, None)
    recipe = speaker.recipe
    if options.data_directory is not None:
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"directory": options.data_directory})}
        )
    if options.temperature is not None:
        generation = recipe.ppo.generation.model_copy(update={"temperature": options.temperature})
        recipe = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"generation": generation})})
    room = context_of(speaker.policy) - recipe.ppo.generation.max_new_tokens
    prompts = prompts_of(recipe, options)
    order = list(range(len(prompts)))
    random.Random(f"{options.seed}/label-sample").shuffle(order)
    chosen: list[int] = []
    too_long = 0
    for place in order:
        if len(chosen) == options.prompts:
            break
        if len(speaker.tokenization.prompt(prompts[place])) <= room:
            chosen.append(place)
        else:
            too_long += 1
    if not chosen:
        raise ConfigError(
            f"ppo.generation.max_new_tokens={recipe.ppo.generation.max_new_tokens}: leaves no room for a prompt in the "
            f"context of {room + recipe.ppo.generation.max_new_tokens} tokens; give shorter prompts"
        )
    rows = [prompts[place] for place in chosen]
    asked = rows * options.responses
    with counter("sampling", len(asked)) as done:
        completions = sample(
            speaker.policy, speaker.tokenization, recipe, asked, options.seed, ended=lambda *_: done(1)
        )
    scoring = scoring_of([unscaled(target)], options.reward, lambda line: print(line, file=sys.stderr))
    scores = scoring.scores(speaker, completions) if scoring else None
    records = []
    for number, prompt in enumerate(rows):
        found = range(number, len(completions), len(rows))
        own = scores and [scores[i] for i in found]
        if record := record_of(prompt, [completions[i] for i in found], own):
            records.append(record)
    if not records:
        raise DataError(f"{target.label}: gives each prompt one and the same response; raise --temperature")
    return Sampled(target.label, records, len(rows) - len(records), too_long)


def unscaled(target: Target) -> Target:
    """A target whose reward's scores stay as they are: by differences in nats Bradley & Terry give a probability."""
    ppo = target.recipe.ppo.model_copy(update={"normalize_scores": "none"})
    return replace(target, recipe=target.recipe.model_copy(update={"ppo": ppo}))


def prompts_of(recipe: Recipe, options: argparse.Namespace) -> Selection[Prompt]:
    """Those of both parts, or of the part that the options say, each once whatever its source weighs."""
    alike = [source.model_copy(update={"weight": None, "replay": None}) for source in recipe.data.prompts]
    split = sources.prompts(recipe.data.model_copy(update={"prompts": alike}), recipe.seed)
    parts = [split.train, split.test]
    if options.held_out or options.training:
        parts = [split.test if options.held_out else split.train]
    return Selection(parts, np.arange(sum(map(len, parts))))


def record_of(
    prompt: Prompt, completions: Sequence[Completion], scores: Sequence[float] | None
) -> dict[str, Any] | None:
    """A prompt with its different responses, as `push` and `select` read it; None where there are no two."""
    first: dict[str, int] = {}
    for number, completion in enumerate(completions):
        first.setdefault(completion.response, number)
    if len(first) < 2:
        return None
    kept = list(first.values())
    return {
        "prompt": as_record(prompt)["prompt"],
        "responses": [completions[i].response for i in kept],
        "finished": [completions[i].finished for i in kept],
        **({} if scores is None else {"scores": [round(scores[i], 4) for i in kept]}),
    }


def arguments() -> argparse.Namespace:
    """The options; `rlhf label sample --help` explains them."""
    parser = argparse.ArgumentParser(prog="python -m stages.responses", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", metavar="RUN")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--responses", type=int, default=2)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--stage")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-directory")
    parser.add_argument("--reward", action="store_true")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Write the responses; the exit code."""
    options = arguments()
    quiet_libraries()
    try:
        found = responses(options)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found.records)
        write_text(options.output, lines)
    except RLHFError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(found.figures(options.output), indent=2))
    else:
        print("\n".join(found.told(options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
