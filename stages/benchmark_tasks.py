"""The tasks that `evaluate.lm_eval.tasks` names: whether there are such, and the content of those in files.

A task is a name that lm-eval knows (with * for several), a file (*.yaml), or a directory, written with a slash, all of
whose tasks are meant. Relative paths start at data.directory. Loads no torch, and lm-eval only to look for names.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.records import one_line
from rlhf.config import Recipe
from rlhf.errors import ConfigError
from rlhf.store.artifact import digest, file_digest

FIELD = "evaluate.lm_eval"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Tasks:
    """What lm-eval is asked for."""

    manager: Any  # lm_eval.tasks.TaskManager
    specs: list[str]  # names and files, as it takes them


def find_tasks(recipe: Recipe) -> Tasks:
    """All tasks of a recipe. Raises one ConfigError with all that are none, or where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"{FIELD}: the package lm-eval is not installed; in the clone: pip install -c constraints.txt -e '.[eval]'"
        )
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    paths = {spec: path for spec in _specs(recipe) if (path := path_of(recipe, spec))}
    problems = [
        f"{FIELD}.tasks: {path}: no such file or directory; relative paths start at data.directory (--data-dir)"
        for path in paths.values()
        if not path.exists()
    ]
    folders = [path for path in paths.values() if path.is_dir()]
    known = any(spec not in paths for spec in _specs(recipe))  # reading all that lm-eval brings takes seconds
    manager = TaskManager(include_path=folders, include_defaults=known)
    found: list[str] = []
    for spec in _specs(recipe):
        path = paths.get(spec)
        if path is None:
            names = manager.match_tasks([spec])
            if not names:
                close = difflib.get_close_matches(spec, manager.all_tasks, n=1)
                hint = (
                    f"did you mean {close[0]}?" if close else "give a name that it has, a *.yaml file or a directory/"
                )
                problems.append(f"{FIELD}.tasks: {spec} is no task of lm-eval; {hint}")
            found += names
        elif path.is_dir():
            names = TaskManager(include_path=path, include_defaults=False).all_subtasks
            if not names:
                problems.append(f"{FIELD}.tasks: {path}: holds no task; give a directory with *.yaml files of lm-eval")
            found += names
        elif path.exists():
            problems += _problems_of(path)
            found.append(str(path.resolve()))
    if problems:
        raise ConfigError(*problems)
    return Tasks(manager, list(dict.fromkeys(found)))


def tasks_digest(recipe: Recipe) -> str:
    """Hash of the content of all tasks in files, and of the files that they name: data, functions, other tasks."""
    digests = []
    for spec in _specs(recipe):
        path = path_of(recipe, spec)
        if path is None:
            digests.append([spec])
            continue
        own = sorted(file for file in path.rglob("*") if _counts(file)) if path.is_dir() else [path]
        files = dict.fromkeys(own) | dict.fromkeys(file for each in own for file in _named_in(each))
        digests.append([file_digest(file) for file in files if file.is_file()])
    return digest(digests)


def path_of(recipe: Recipe, spec: str) -> Path | None:
    """Where a task's file or directory should be; None for the name of a task."""
    return Path(recipe.data.directory or ".") / spec if "/" in spec or spec.endswith(SUFFIXES) else None


def _specs(recipe: Recipe) -> list[str]:
    return recipe.evaluate.lm_eval.tasks if recipe.evaluate.lm_eval else []


def _problems_of(path: Path) -> list[str]:
    from lm_eval.tasks._index import TaskIndex

    try:
        entry = TaskIndex.entry_from_path(path)
    except Exception as error:  # whatever a broken file makes the reader raise
        return [f"{FIELD}.tasks: {path}: not a task of lm-eval ({one_line(error)}); correct it"]
    return [] if entry else [f"{FIELD}.tasks: {path}: has no `task:` with its name; add one"]


def _counts(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")


def _named_in(path: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files that the text of a task names, beside it or from the working directory, and those named in them."""
    if path.suffix not in SUFFIXES or path in seen:
        return
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return  # whoever runs it will say so
    for value in _texts(root):
        for place in (path.parent, Path()):
            file = place / value
            if len(value) < 256 and value.isprintable() and file.is_file():
                yield file
                yield from _named_in(file, seen | {path})


def _texts(node: yaml.Node | None) -> Iterator[str]:
    """All scalars; of a function, its module's file."""
    if isinstance(node, yaml.ScalarNode):
        module = node.value.rpartition(".")[0].replace(".", "/")
        yield f"{module}.py" if node.tag == "!function" else node.value
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _texts(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _texts(value)
