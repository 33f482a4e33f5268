"""Pairs that a run has sampled: each prompt's responses before and after, with the same noise.

RUN/evaluate/samples/side-by-side-000000.parquet    the SFT model and the aligned policy
RUN/ppo/samples/held-out-STEP.parquet               the policy before PPO and after its last evaluated step
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data.fields import prompt_of
from data.labelling.pairs import Pair, Pairs
from rlhf.errors import ArtifactError, DataError
from rlhf.store.samples import TURNS
from rlhf.types import Prompt

STAGES = ("evaluate", "ppo")
Row = Mapping[str, Any]


def pairs_of_run(run: Path, stage: str | None = None) -> Pairs:
    """The pairs of a stage of a run, or of the last one that has some. Raises ArtifactError where there are none."""
    for name in STAGES if stage is None else (stage,):
        rows = list(_evaluated(run) if name == "evaluate" else _held_out(run))
        if rows:
            pairs = Pairs()
            for pair in rows:
                pairs.add(pair)
            if not pairs.found:
                raise DataError(f"{run}/{name}: all {pairs.identical:,} pairs are of equal responses; train further")
            return pairs
    looked = " or ".join(f"{run}/{name}/samples" for name in (STAGES if stage is None else (stage,)))
    raise ArtifactError(f"{looked}: no samples of two policies; run `rlhf evaluate`, or ppo with ppo.evaluate_every")


def _evaluated(run: Path) -> Iterator[Pair]:
    for path in sorted((run / "evaluate" / "samples").glob("side-by-side-*.parquet")):
        for row in _rows(path, ("prompt", "before", "after", "before_finished", "after_finished")):
            finished = bool(row["before_finished"]), bool(row["after_finished"])
            yield Pair(_prompt(row), row["before"], row["after"], *finished, origin=f"{path}")


def _held_out(run: Path) -> Iterator[Pair]:
    paths = sorted((run / "ppo" / "samples").glob("held-out-*.parquet"))
    if len(paths) < 2:
        return
    wanted = ("index", "prompt", "response", "finished")
    before, after = ({row["index"]: row for row in _rows(path, wanted)} for path in (paths[0], paths[-1]))
    for index in sorted(before.keys() & after.keys()):
        one, other = before[index], after[index]
        if one["prompt"] == other["prompt"]:
            finished = bool(one["finished"]), bool(other["finished"])
            yield Pair(_prompt(one), one["response"], other["response"], *finished, origin=f"{paths[-1]}")


def _rows(path: Path, wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); run the stage again") from error
    if missing := [name for name in wanted if rows and name not in rows[0]]:
        raise ArtifactError(f"{path}: has no column {missing[0]}; run the stage again")
    return rows


def _prompt(row: Row) -> Prompt:
    """The very prompt that was answered, turns included."""
    turns = row.get(TURNS)
    return Prompt(row["prompt"]) if turns is None else prompt_of({"prompt": json.loads(turns)})
