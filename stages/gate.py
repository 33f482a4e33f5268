"""The gate: comparisons are checked before a reward model learns from them (data.check). Loads no torch by itself.

The launcher checks what lies in files before the first stage, and keeps the verdict in RUN/check.json. The reward stage
takes that over, or checks by itself: where it was started alone, and where votes are made there (toy, on-policy). What
takes a model to tell it finds in either case: lengths in tokens, and what a classifier says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import sources
from data.quality.check import check_votes, look_again
from data.quality.flags import classifier_place, flagging_of, labels_of, words_place
from data.quality.survey import Tokens
from data.quality.verdict import Verdict
from data.quality.votes import Votes
from rlhf.config import Recipe
from rlhf.errors import DataError
from rlhf.store.artifact import digest, write_json
from rlhf.types import Comparison
from stages.origins import content_digest, model_digest

CHECK = "check.json"
FORMAT = 3  # raised when the same comparisons are checked in another way

_checked: dict[str, Verdict] = {}  # in this process


def is_shut(recipe: Recipe, stages: Sequence[str]) -> bool:
    """Whether these stages train a reward model on comparisons that are to be checked."""
    return "reward" in stages and not recipe.reward.use and recipe.data.check.gate != "off"


def check_files(recipe: Recipe, run: Path | None) -> None:
    """Check comparisons in files before anything begins, unless RUN/check.json says how that went.

    What is made by the stage is left to it. Raises DataError, a line for each finding, for a verdict of fail.
    """
    check, directory = recipe.data.check, recipe.data.directory
    flagging = flagging_of(check, directory, models=False)
    if check.classifier:
        labels_of(check.classifier, directory)  # which it is loaded for in the stage
    if not _in_files(recipe):
        return
    verdict = found(recipe, run)
    if verdict is None:
        verdict = check_votes(Votes(recipe.data, recipe.seed), check, flagging=flagging).verdict
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
    return _kept(run / CHECK, key)


def _kept(path: Path, key: str) -> Verdict | None:
    """The verdict that a file holds, if it is of this key."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Verdict.from_json(kept) if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def pass_through(
    recipe: Recipe,
    run: Path,
    output: Path,
    sampled: Mapping[int, Sequence[Comparison]],
    tokens: Tokens,
    warn: Callable[[str], None],
) -> None:
    """In the reward stage: check, or take over what was found; write it to the stage's directory, and tell the worst.

    sampled: votes that the stage has made, by the position of their source. Raises DataError for a verdict of fail.
    """
    if recipe.data.check.gate == "off":
        return
    key = digest([_key(recipe), tokens.identity, _classifier_digest(recipe)])
    # A stage that goes on has read all of it before; votes that it makes may be others.
    verdict = _kept(output / CHECK, key) if _in_files(recipe) else None
    if verdict is None:
        verdict = _with_models(recipe, run, sampled, tokens)
    write_json(output / CHECK, {"key": key, **verdict.as_json()})
    require(verdict, recipe)
    for finding in verdict.of("fail"):
        warn(f"data check: {finding}")
    if concerning := verdict.of("warn"):
        kinds = ", ".join(f"{finding.count:,} {finding.kind}" for finding in concerning)
        warn(f"data check: {kinds}; see {output / CHECK}, or rlhf data check --recipe")


def _with_models(recipe: Recipe, run: Path, sampled: Mapping[int, Sequence[Comparison]], tokens: Tokens) -> Verdict:
    check, votes = recipe.data.check, Votes(recipe.data, recipe.seed, sampled)
    flagging = flagging_of(check, recipe.data.directory, models=True)
    if before := found(recipe, run):
        return look_again(before, votes, check, tokens, flagging)
    return check_votes(votes, check, tokens, flagging).verdict


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
    """What a verdict depends on, models aside."""
    data = recipe.data
    content = sources.content_hash(data, "comparisons")
    words = content_digest(words_place(data.check.words, data.directory)) if data.check.words else None
    check = data.check.model_dump(exclude={"gate", "words", "classifier"})
    return digest([FORMAT, content, data.test_fraction, recipe.seed, check, words])


def _classifier_digest(recipe: Recipe) -> str | None:
    classifier = recipe.data.check.classifier
    if classifier is None:
        return None
    content = model_digest(str(classifier_place(classifier, recipe.data.directory)), None)
    return digest([content, classifier.model_dump(exclude={"path"})])
