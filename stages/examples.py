"""A recipe's examples in a stage: the main process reads the files and writes them to scratch, the others map them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from data import sources
from data.splits import Split
from rlhf.distributed import main_first
from rlhf.types import Comparison, Demonstration, Prompt
from stages.context import StageContext


def scratch_of(context: StageContext) -> Path:
    """Where a stage keeps examples; removed when the stage is complete, found again when it goes on."""
    return context.partial / "data"


def demonstrations(context: StageContext) -> Split[Demonstration]:
    """All demonstrations."""
    with _in_turn(context, "demonstrations"):
        split = sources.demonstrations(context.recipe.data, context.recipe.seed, scratch_of(context))
    return _told(context, split)


def comparisons(
    context: StageContext, sampled: Mapping[int, Sequence[Comparison]]
) -> tuple[Split[Comparison], float | None]:
    """All comparisons; see `sources.comparisons`."""
    recipe = context.recipe
    with _in_turn(context, "comparisons"):
        split, bayes_accuracy = sources.comparisons(recipe.data, recipe.seed, scratch_of(context), sampled)
    return _told(context, split), bayes_accuracy


def prompts(context: StageContext) -> Split[Prompt]:
    """All prompts."""
    with _in_turn(context, "prompts"):
        split = sources.prompts(context.recipe.data, context.recipe.seed, scratch_of(context))
    return _told(context, split)


def _in_turn(context: StageContext, kind: str) -> AbstractContextManager[None]:
    """The main process first, where there are files to write; what is made in memory, every process makes at once."""
    return main_first() if sources.reads_files(context.recipe.data, kind) else nullcontext()


def _told(context: StageContext, split: Split[Any]) -> Split[Any]:
    for note in split.notes:
        context.say(note)
    return split
