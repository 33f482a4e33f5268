"""The gate: comparisons are checked before a reward model learns from them (data.check). Loads no torch.

The launcher checks what lies in files before the first stage, and keeps the verdict in RUN/check.json. The reward stage
takes that over, or checks by itself: where it was started alone, and where votes are made there (toy, on-policy).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import sources
from data.quality.check import check_votes
from data.quality.verdict import Verdict
from data.quality.votes import Votes
from rlhf.config import Recipe
from rlhf.errors import DataError
from rlhf.store.artifact import digest, write_json
from rlhf.types import Comparison

CHECK = "check.json"
FORMAT = 2  # raised when the same comparisons are checked in another way

_checked: dict[str, Verdict] = {}  # in this process


def is_shut(recipe: Recipe, stages: Sequence[str]) -> bool:
    """Whether these stages train a reward model on comparisons that are to be checked."""
    return "reward" in stages and not recipe.reward.use and recipe.data.check.gate != "off"


def check_files(recipe: Recipe, run: Path | None) -> None:
    """Check comparisons in files before anything begins, unless RUN/check.json says how that went.

    What is made by the stage is left to it. Raises DataError, a line for each finding, for a verdict of fail.
    """
    if not _in_files(recipe):
        return
    verdict = found(recipe, run) or check_votes(Votes(recipe.data, recipe.seed), recipe.data.check).verdict
    _checked[_key(recipe)] = verdict
    require(verdict, recipe)


def keep(recipe: Recipe, run: Path) -> None:
    """Write what `check_files` has found to RUN/check.json."""
    if _in_files(recipe) and (verdict := _checked.get(_key(recipe))):
        write_json(run / CHECK, {"key": _key(recipe), **verdict.as_json()})


def found(recipe: Recipe, run: Path | None) -> Verdict | None:
    """What was found of the same comparisons before, in this process or in a run's directory."""
    key = _key(recipe)
    if key in _checked or run is None or not _in_files(recipe):
        return _checked.get(key)
    try:
        kept = json.loads((run / CHECK).read_text(encoding="utf-8"))
        return Verdict.from_json(kept) if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def pass_through(
    recipe: Recipe, run: Path, output: Path, sampled: Mapping[int, Sequence[Comparison]], warn: Callable[[str], None]
) -> None:
    """In the reward stage: check, or take over what was found; write it to the stage's directory, and tell the worst.

    sampled: votes that the stage has made, by the position of their source. Raises DataError for a verdict of fail.
    """
    config = recipe.data.check
    if config.gate == "off":
        return
    verdict = found(recipe, run) or check_votes(Votes(recipe.data, recipe.seed, sampled), config).verdict
    write_json(output / CHECK, verdict.as_json())
    require(verdict, recipe)
    for finding in verdict.of("fail"):
        warn(f"data check: {finding}")
    if concerning := verdict.of("warn"):
        kinds = ", ".join(f"{finding.count:,} {finding.kind}" for finding in concerning)
        warn(f"data check: {kinds}; see {output / CHECK}, or rlhf data check --recipe")


def require(verdict: Verdict, recipe: Recipe) -> None:
    """Raise DataError, a line for each finding, where the recipe lets a verdict of fail end the training."""
    if verdict.verdict == "fail" and recipe.data.check.gate == "fail":
        remedy = "or set data.check.gate=warn"
        raise DataError(*(f"data.comparisons: {finding}, {remedy}" for finding in verdict.of("fail")))


def headline(output: Path) -> dict[str, Any] | None:
    """What a manifest says of the check; None where there was none."""
    if not (output / CHECK).is_file():
        return None
    return Verdict.from_json(json.loads((output / CHECK).read_text(encoding="utf-8"))).record()


def _in_files(recipe: Recipe) -> bool:
    """Whether all comparisons lie in files."""
    return all(source.path not in (*sources.MODULES, sources.ON_POLICY) for source in recipe.data.comparisons)


def _key(recipe: Recipe) -> str:
    """What a verdict depends on."""
    data = recipe.data
    content = sources.content_hash(data, "comparisons")
    return digest([FORMAT, content, data.test_fraction, recipe.seed, data.check.model_dump(exclude={"gate"})])
