"""Votes on chosen pairs against votes on random ones, with the reward stage; run, the curves of docs/annotators.md.

    PYTHONPATH=. python tests/chosen.py --at-once 2 --picture docs/selection.png

Of a run's responses some pairs are labelled, the reward stage is trained on them, `rlhf label select` chooses more of
the others by the new scores, and so on. Each pair has one vote, which is right with probability 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stdout
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hidden import RECIPE, Two, asked, begin, said, says
from running import stage

from data.formats import as_record, write_jsonl
from launch.cli import app
from reward_models.pairs import encode_comparison
from rlhf.analysis.pictures import COLOURS, plain_matplotlib, write_png
from rlhf.devices import settled_recipe
from rlhf.recipe import load_recipe
from rlhf.store.artifact import find_artifact
from rlhf.tokenization import load_tokenization
from rlhf.types import Comparison
from stages.rewards import trained_model

BUDGETS = (50, 100, 200, 300, 400)
POOL, RELIABILITY = 1200, 0.9
WAYS = ("random", "margin")


@dataclass(frozen=True)
class Point:
    """A reward model of so many votes, on held-out pairs."""

    labels: int
    accuracy: float
    low: float  # 95 % interval, over pairs
    high: float


def prepare(folder: Path, seed: int) -> None:
    """A run of a seed, its responses, and a reward model of the first votes, which are the same for each way."""
    begin(folder, seed)
    sample = ("label", "sample", "labelling", "--training", "--prompts", str(POOL), "--seed", str(seed))
    said(folder, *sample, "--output", "responses.jsonl")
    trained(folder, folder, seed, first_votes(folder, seed))


def first_votes(folder: Path, seed: int) -> list[Comparison]:
    """Votes on pairs that the seed draws."""
    first = random.Random(f"{seed}/first").sample(asked(folder / "responses.jsonl"), BUDGETS[0])
    return [vote_on(pair, seed) for pair in first]


def curve(folder: Path, seed: int, by: str) -> list[Point]:
    """What a way of choosing comes to with each number of votes."""
    own = folder / by
    own.mkdir()
    for name in ("held-out.jsonl", "votes.jsonl"):
        shutil.copy(folder / name, own / name)
    shutil.copytree(folder / "reward", own / "reward")
    pool = asked(folder / "responses.jsonl")
    votes = first_votes(folder, seed)
    points = [point_of(own, BUDGETS[0])]
    for budget in BUDGETS[1:]:
        write_scored(own, seed, pool)
        shutil.copy(own / "votes.jsonl", own / "labelled.jsonl")
        votes += [vote_on(pair, seed) for pair in chosen(own, by, budget - len(votes), seed)]
        assert len(votes) == budget
        points.append(trained(own, folder, seed, votes))
    return points


def vote_on(pair: Two, seed: int) -> Comparison:
    """One person's vote, the same whenever and in whichever order they are asked."""
    texts = sorted(pair.responses)
    draw = random.Random(f"{seed}/{pair.prompt.text}/{texts}")
    same = Two(
        pair.prompt, (texts[0], texts[1]), pair.finished if texts[0] == pair.responses[0] else pair.finished[::-1]
    )
    return same.comparison(says(same.gap, RELIABILITY, draw), annotator="ann")


def trained(own: Path, folder: Path, seed: int, votes: Sequence[Comparison]) -> Point:
    """The reward stage on votes: own/reward."""
    write_jsonl(own / "votes.jsonl", votes)
    shutil.rmtree(own / "reward", ignore_errors=True)
    with chdir(own), Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        stage("reward", RECIPE, folder / "runs/labelling", own / "reward", [f"seed={seed}"])
    point = point_of(own, len(votes))
    print(f"  {own}: {point.labels} votes, {point.accuracy:.3f}", file=sys.stderr, flush=True)
    return point


def point_of(own: Path, labels: int) -> Point:
    """What a reward stage's manifest says of held-out pairs."""
    results = json.loads((own / "reward/manifest.json").read_text())["results"]
    return Point(labels, results["accuracy"], *results["accuracy_ci"])


def write_scored(folder: Path, seed: int, pool: list[Two]) -> None:
    """The pool with the scores of the present reward model, as `rlhf label sample` would write it again."""
    artifact = find_artifact(folder / "reward")
    assert artifact is not None
    recipe = settled_recipe(load_recipe(RECIPE, [f"seed={seed}"]), "evaluate")
    tokenization = load_tokenization(artifact.model, recipe.model)
    model = trained_model(artifact, tokenization, recipe)
    rows = [encode_comparison(pair.comparison("first"), tokenization) for pair in pool]
    scores = [model.score_tokens([row[name] for row in rows]).tolist() for name in ("chosen_ids", "rejected_ids")]
    with (folder / "scored.jsonl").open("w") as file:
        for pair, *both in zip(pool, *scores, strict=True):
            record: dict[str, Any] = {"prompt": as_record(pair.prompt)["prompt"], "responses": pair.responses}
            file.write(json.dumps({**record, "finished": pair.finished, "scores": both}) + "\n")


def chosen(folder: Path, by: str, count: int, seed: int) -> list[Two]:
    """What the command chooses of the pairs without a vote."""
    select = ["label", "select", "scored.jsonl", "--by", by, "--budget", str(count), "--seed", str(seed)]
    with chdir(folder), Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        app([*select, "--without", "labelled.jsonl", "--output", "next.jsonl"], standalone_mode=False)
    return asked(folder / "next.jsonl")


def labels_to(points: list[Point], accuracy: float) -> float:
    """Votes at which a curve first reaches an accuracy, on the line between its points."""
    for before, after in zip(points, points[1:], strict=False):
        if after.accuracy >= accuracy:
            if before.accuracy >= accuracy:
                return before.labels
            part = (accuracy - before.accuracy) / (after.accuracy - before.accuracy)
            return before.labels + part * (after.labels - before.labels)
    return float("inf")


def share_needed(found: dict[str, list[Point]]) -> float:
    """Of random's votes, the share with which margin reaches what random reaches with all of them."""
    last = found["random"][-1]
    return labels_to(found["margin"], last.accuracy) / last.labels


def measured(folder: Path, seeds: Sequence[int], at_once: int) -> list[dict[str, list[Point]]]:
    """The curves of some seeds, in a folder; each seed, and then each way, in a process of its own."""

    def part(seed: int, what: str) -> str:
        command = [sys.executable, __file__, "--folder", str(folder), "--seed", str(seed), "--part", what]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    def points(seed: int, by: str) -> list[Point]:
        return [Point(*point) for point in json.loads(part(seed, by).splitlines()[-1])]

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda seed: part(seed, "prepare"), seeds))
        found = pool.map(lambda both: points(*both), [(seed, by) for seed in seeds for by in WAYS])
        return [{by: next(found) for by in WAYS} for _ in seeds]


def do_part(folder: Path, seed: int, what: str) -> None:
    """A process of `measured`: prepare a seed, or print the points of a way as JSON."""
    folder = folder / str(seed)
    if what == "prepare":
        folder.mkdir()
        prepare(folder, seed)
    else:
        print(json.dumps([astuple(point) for point in curve(folder, seed, what)]))


def averaged(curves: Sequence[list[Point]]) -> list[Point]:
    """The mean of several curves, point by point."""
    of_each = [[astuple(point) for point in points] for points in zip(*curves, strict=True)]
    return [
        Point(points[0][0], *(fmean(column) for column in list(zip(*points, strict=True))[1:])) for points in of_each
    ]


def main(folder: Path, count: int, at_once: int, picture: Path | None) -> None:
    """Print the curves of some seeds, and draw them."""
    every = measured(folder, range(1, count + 1), at_once)
    print("| seed | chosen by | " + " | ".join(f"{budget}" for budget in BUDGETS) + " votes |")
    for seed, found in enumerate(every, start=1):
        for by, points in found.items():
            cells = (f"{point.accuracy:.3f} ({point.low:.3f} to {point.high:.3f})" for point in points)
            print(f"| {seed} | {by} | " + " | ".join(cells) + " |")
    mean = {by: averaged([found[by] for found in every]) for by in WAYS}
    for by, points in mean.items():
        print(f"| mean | {by} | " + " | ".join(f"{point.accuracy:.3f}" for point in points) + " |")
    print("margin reaches random's last with " + ", ".join(f"{share_needed(found):.0%}" for found in every))
    print(f"and by the means with {share_needed(mean):.0%}")
    if picture is not None:
        draw(every, picture)


def draw(every: list[dict[str, list[Point]]], output: Path) -> None:
    """A panel for each seed."""
    with plain_matplotlib():
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(2.6 * len(every), 2.6), layout="constrained")
        panels = drawn.subplots(1, len(every), squeeze=False, sharey=True)[0]
        for seed, (axes, found) in enumerate(zip(panels, every, strict=True), start=1):
            for colour, (by, points) in zip(COLOURS, found.items(), strict=False):
                labels = [point.labels for point in points]
                axes.fill_between(
                    labels, [point.low for point in points], [point.high for point in points], color=colour, alpha=0.15
                )
                axes.plot(labels, [point.accuracy for point in points], "o-", ms=3, lw=1, color=colour, label=by)
            axes.set_title(f"seed {seed}", loc="left")
            axes.set_xlabel("votes")
        panels[0].set_ylabel("held-out pairs right")
        panels[0].legend(frameon=False)
        write_png(drawn, output, "Accuracy of the reward stage over votes, chosen by margin and at random")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", type=int, nargs="?", default=3)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--part")
    options = parser.parse_args()
    if options.part:
        do_part(options.folder, options.seed, options.part)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main((options.folder or Path(temporary)).resolve(), options.seeds, options.at_once, options.picture)
