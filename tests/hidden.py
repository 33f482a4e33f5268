"""People who know the hidden utility of the embedded task, each right so often, and what they say of responses.

Run: one round of labelling on three seeds without a server, and what it does to the reward model (docs/labelling.md).
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import ROOT, rlhf

from data import toy
from data.fields import prompt_of
from data.formats import write_jsonl
from data.locations import files_of
from data.reading import Reading
from data.splits import split_prompts
from data.toy_gold import utility
from rlhf.config import SourceConfig
from rlhf.types import Comparison, Prompt

RECIPE = ROOT / "tests" / "recipes" / "labelling.yaml"
FIRST_VOTES, PAIRS, OVERLAP = 50, 150, 3
# How often each is right. The last one votes against.
PEOPLE = {"ann": 0.95, "bob": 0.9, "cleo": 0.8, "dan": 0.65, "mal": 0.15}
EQUAL = 1e-9  # utilities that differ by less are the same


@dataclass(frozen=True)
class Two:
    """A prompt, two responses, and whether they ended by themselves."""

    prompt: Prompt
    responses: tuple[str, str]
    finished: tuple[bool, bool] = (True, True)

    @property
    def gap(self) -> float:
        """By how much the first is better."""
        first, second = (utility(self.prompt.text, response) for response in self.responses)
        return first - second

    def comparison(self, says: str, **more: Any) -> Comparison:
        """A vote: first, second or tie."""
        one, other = (1, 0) if says == "second" else (0, 1)
        return Comparison(
            self.prompt,
            self.responses[one],
            self.responses[other],
            tie=says == "tie",
            chosen_finished=self.finished[one],
            rejected_finished=self.finished[other],
            **more,
        )


def says(gap: float, reliability: float, draw: random.Random) -> str:
    """What somebody says of a pair: what is so with a probability, of equals that they are."""
    if abs(gap) < EQUAL:
        return "tie"
    return "first" if (gap > 0) == (draw.random() < reliability) else "second"


def asked(path: Path) -> list[Two]:
    """Each two responses of a file of responses."""
    found = []
    for record in map(json.loads, path.read_text().splitlines()):
        prompt, ended = prompt_of(record), record["finished"]
        for one, other in itertools.combinations(range(len(ended)), 2):
            found.append(
                Two(prompt, (record["responses"][one], record["responses"][other]), (ended[one], ended[other]))
            )
    return found


def write_held_out(pairs: Iterable[Two], path: Path) -> int:
    """What is so of pairs, equal ones left out; how many there are."""
    unequal = [pair for pair in pairs if abs(pair.gap) >= EQUAL]
    return write_jsonl(path, (pair.comparison(says(pair.gap, 1.0, random.Random(0))) for pair in unequal))


def write_first_votes(path: Path, seed: int) -> None:
    """The few votes that a first reward model has: one person's each, on responses that no policy of ours has given."""
    training = split_prompts(toy.prompts(), 0.1).train
    write_jsonl(path, toy.comparisons(FIRST_VOTES, seed, training).records)


def write_consensus(folder: Path, votes: Iterable[Comparison]) -> dict[str, Any]:
    """Put votes together by the command; what it found."""
    write_jsonl(folder / "people.jsonl", votes)
    found: dict[str, Any] = json.loads(
        said(folder, "data", "consensus", "people.jsonl", "--output", "consensus.jsonl", "--json")
    )
    return found


def said(folder: Path, *arguments: str) -> str:
    """What a command prints; it must succeed."""
    done = rlhf(*arguments, folder=folder, seconds=3600)
    assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def begin(folder: Path, seed: int, recipe: Path = RECIPE) -> None:
    """A run with an SFT model, the first votes, and held-out pairs of its responses: runs/labelling."""
    said(folder, "sft", str(recipe), f"seed={seed}")
    sample = ("label", "sample", "labelling", "--held-out", "--responses", "4", "--prompts", "1000")
    said(folder, *sample, "--seed", str(seed), "--output", "held-out-responses.jsonl")
    write_held_out(asked(folder / "held-out-responses.jsonl"), folder / "held-out.jsonl")
    write_first_votes(folder / "votes.jsonl", seed)


def reward_of(folder: Path, seed: int, *comparisons: str, recipe: Path = RECIPE) -> Mapping[str, Any]:
    """Train the reward model on files of comparisons; what its manifest says of held-out pairs."""
    sources = ", ".join(f"{{path: {name}}}" for name in (*comparisons, "held-out.jsonl"))
    said(folder, "reward", str(recipe), f"seed={seed}", f"data.comparisons=[{sources}]")
    results: Mapping[str, Any] = json.loads((folder / "runs/labelling/reward/manifest.json").read_text())["results"]
    return results


def votes_on(pairs: Iterable[Two], seed: int) -> list[Comparison]:
    """What `OVERLAP` of the people say of each pair."""
    draw = random.Random(f"{seed}/people")
    return [
        pair.comparison(says(pair.gap, PEOPLE[person], draw), annotator=person)
        for pair in pairs
        for person in draw.sample(list(PEOPLE), OVERLAP)
    ]


def main(seeds: Sequence[int]) -> None:
    """A round on some seeds: accuracy on held-out pairs before and after, with 95 % intervals over pairs."""
    print("| seed | held-out pairs | before | after, in place of the first votes | beside them | consensus right |")
    print("|---|---|---|---|---|---|")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            begin(folder, seed)
            before = reward_of(folder, seed, "votes.jsonl")
            sample = ("label", "sample", "labelling", "--training", "--prompts", str(PAIRS), "--seed", str(seed))
            said(folder, *sample, "--output", "responses.jsonl")
            pairs = asked(folder / "responses.jsonl")
            write_consensus(folder, votes_on(pairs, seed))
            after = reward_of(folder, seed, "consensus.jsonl")
            beside = reward_of(folder, seed, "votes.jsonl", "consensus.jsonl")
            right = consensus_right(folder / "consensus.jsonl")
        cells = " | ".join(f"{figures['accuracy']:.3f} ({told(figures)})" for figures in (before, after, beside))
        print(f"| {seed} | {before['votes']:,} | {cells} | {right:.3f} |", flush=True)


def told(figures: Mapping[str, Any]) -> str:
    """An interval."""
    low, high = figures["accuracy_ci"]
    return f"{low:.3f} to {high:.3f}"


def consensus_right(path: Path) -> float:
    """Share of pairs that the consensus is right about, of those that are not equal; an even one counts half."""
    right = []
    for pair in Reading(SourceConfig(path=str(path)), files_of(str(path), None), "comparisons"):
        assert isinstance(pair, Comparison)
        gap = Two(pair.prompt, (pair.chosen, pair.rejected)).gap
        if abs(gap) >= EQUAL:
            right.append(0.5 if pair.tie else float(gap > 0))
    return sum(right) / len(right)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or (1, 2, 3))
