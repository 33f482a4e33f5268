"""A reward model that goes on with new votes: on those alone, with a share of the old, or from nothing on both.

Of the embedded task the old votes are on pairs that are equally polite, the new ones on pairs that are not: what the
new ones ask for, the old ones say nothing of. Prints a table of docs/drift.md, by the reward stage itself:
PYTHONPATH=. python tests/replay.py DIRECTORY [SEED …]
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from data import toy
from data.formats import write_jsonl
from rlhf.types import Comparison

COUNTS = {"old": 4000, "new": 1000}  # votes, held-out ones among them
SHARE = 0.5
LITTLE = 1e-6  # a share that draws none, so that what is held out of a source is judged all the same
RECIPE = """base: {base}
name: replay
seed: {seed}
data:
  test_fraction: 0.15
  demonstrations: [{{path: demonstrations.jsonl}}]
  prompts: [{{path: demonstrations.jsonl}}]
  comparisons: {sources}
reward: {{epochs: 1{start}}}
"""


def politeness(vote: Comparison) -> tuple[float, float]:
    """Of the chosen and the rejected response."""
    return tuple(toy.parts(vote.prompt.text, text)["polite"] for text in (vote.chosen, vote.rejected))  # type: ignore[return-value]


def write_files(directory: Path, seed: int) -> None:
    """Old and new votes with their kind, and demonstrations."""
    write_jsonl(directory / "demonstrations.jsonl", toy.demonstrations(2500, seed, toy.prompts()))
    drawn = toy.comparisons(4 * sum(COUNTS.values()), seed, toy.prompts()).records
    for kind, count in COUNTS.items():
        votes = [vote for vote in drawn if (len(set(politeness(vote))) == 1) == (kind == "old")]
        write_jsonl(directory / f"{kind}.jsonl", [replace(vote, kind=kind) for vote in votes[:count]])


def train(directory: Path, name: str, seed: int, sources: str, start: str) -> dict[str, float]:
    """Train a reward model; its held-out accuracy on old and on new votes."""
    base = Path(__file__).parent / "recipes" / "learning.yaml"
    recipe, run = directory / f"{name}.yaml", directory / name
    recipe.write_text(RECIPE.format(base=base, seed=seed, sources=sources, start=start))
    if name != "first":
        run.mkdir(exist_ok=True)
        (run / "sft").unlink(missing_ok=True)
        (run / "sft").symlink_to((directory / "first" / "sft").resolve())
    stages = ["--from", "sft" if name == "first" else "reward", "--until", "reward"]
    command = ["rlhf", "run", str(recipe), *stages, "--run", str(run), "--data-dir", str(directory)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    results = json.loads((run / "reward" / "manifest.json").read_text())["results"]
    return {kind: each["accuracy"] for kind, each in results["accuracy_by_kind"].items()}


def main(directory: Path, seeds: list[int]) -> None:
    """Print the table."""
    print("| seed | trained | old | new |\n|---|---|---|---|")
    old, new = "{path: old.jsonl}", "{path: new.jsonl}"
    few_old, few_new = (f"{{path: {kind}.jsonl, replay: {LITTLE:f}}}" for kind in COUNTS)
    for seed in seeds:
        place = directory / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        write_files(place, seed)
        start = f", start: {place.resolve() / 'first'}"
        for name, told, sources, begun in (
            ("first", "on old", f"[{old}, {few_new}]", ""),
            ("alone", "further, on new", f"[{few_old}, {new}]", start),
            ("mixed", "further, on new and old", f"[{{path: old.jsonl, replay: {SHARE}}}, {new}]", start),
            ("nothing", "from nothing, on both", f"[{old}, {new}]", ""),
        ):
            found = train(place, name, seed, sources, begun)
            print(f"| {seed} | {told} | {found['old']:.3f} | {found['new']:.3f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or [1, 2, 3])
