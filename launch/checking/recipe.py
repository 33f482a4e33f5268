"""The recipe on this machine: its data, models and tokenizers, what it asks of processes, room on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from launch.checking.finding import Finding, failure, ok, warning
from launch.local import processes_of, stage_environment
from launch.planning.work import disk
from rlhf.config import Recipe
from rlhf.errors import RLHFError
from rlhf.recipe_memory import read_shape
from rlhf.shapes import shape_of_init
from rlhf.store.artifact import digest
from stages.lineage import STAGES, used_by
from stages.origins import first_model
from stages.preflight import check
from stages.room import require_room

CHECK, DISK, TOKENIZER = "recipe", "disk", "tokenizer"
TOKENIZER_SECONDS = 120.0


def look(recipe: Recipe, run: Path, world: int, gpu: bool) -> list[Finding]:
    """Everything; world: processes over all nodes."""
    unknown: list[str] = []
    found = [failure(CHECK, problem, "") for problem in problems(recipe, world, gpu, unknown.append)]
    found += [warning(CHECK, line, "") for line in unknown]
    if not found:
        found.append(ok(CHECK, f"{recipe.name}: the recipe and what it names are in order"))
    return [*found, tokenizer(recipe), *room(recipe, run)]


def problems(recipe: Recipe, world: int, gpu: bool, warn: Callable[[str], None]) -> list[str]:
    """What a run would refuse before its first stage. warn: is told what could not be checked."""
    found = []
    wanted = [stage for stage in STAGES if not used_by(recipe, stage)]
    for stage in wanted:
        asked = recipe.parallelism_of(stage).processes
        if world > 1 and asked not in ("auto", world):
            found.append(f"{stage}: parallelism.processes={asked} where {world} processes would run; use auto")
    try:
        check(recipe, list(STAGES), lambda stage: world if world > 1 else processes_of(recipe, stage), gpu, warn=warn)
    except RLHFError as error:
        found += error.problems
    return list(dict.fromkeys(found))


def room(recipe: Recipe, run: Path) -> list[Finding]:
    """Whether the run's disk has room for it; whether it can be written at all is told of the folder."""
    place = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        return []
    for stage in STAGES:
        try:
            require_room(recipe, stage, run)
        except RLHFError as error:
            return [failure(DISK, problem, "") for problem in error.problems]
    free = shutil.disk_usage(place).free
    model = first_model(recipe)
    try:
        shape = shape_of_init(recipe.model.init) if model is None else read_shape(model)
    except RLHFError:
        shape = None
    if shape is None:
        return [ok(DISK, f"{free / 1e9:,.0f} GB free in {place}; what the run needs is unknown without its model")]
    needed = disk(recipe, shape)["total"]
    if free < needed:
        what = f"{free / 1e9:,.1f} GB free in {place}, and the whole run writes up to {needed / 1e9:,.1f} GB"
        return [warning(DISK, what, "free some, or set checkpoint.keep_last lower")]
    return [ok(DISK, f"{free / 1e9:,.0f} GB free in {place}, and the whole run writes up to {needed / 1e9:,.2f} GB")]


def tokenizer(recipe: Recipe) -> Finding:
    """Whether the first model's tokenizer keeps to the contract of prompts and responses; asked by a child process."""
    place = first_model(recipe)
    if place is None:
        return ok(TOKENIZER, "made with the model, from the data")
    if not Path(place).is_dir():
        return ok(TOKENIZER, f"{place} is on the hub: it is looked at when it has been loaded")
    command = [sys.executable, "-P", "-m", "stages.tokenizer_check"]
    options = {"capture_output": True, "text": True, "env": stage_environment(1), "timeout": TOKENIZER_SECONDS}
    try:
        done = subprocess.run(command, input=recipe.model_dump_json(), check=False, **options)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired:
        return failure(TOKENIZER, f"{place}: does not load within {TOKENIZER_SECONDS:g} s", "see the file system")
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["killed"]
    return failure(TOKENIZER, lines[-1], "") if done.returncode else ok(TOKENIZER, lines[-1])


def digest_of(recipe: Recipe | None) -> str:
    """The same for the same recipe."""
    return digest(json.loads(recipe.model_dump_json())) if recipe else ""
