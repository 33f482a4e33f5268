"""Scorers named in a recipe as `package.module:function`: gold scores, labellers, rules.

A scorer takes (prompts, responses) as lists of text and returns one figure each. One that reads files also takes
`data_directory=`, and its module lists those files in `files(data_directory)`, so that their content is fingerprinted.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from rlhf.errors import ConfigError
from rlhf.store.artifact import file_digest
from rlhf.types import Scorer


def load_scorer(name: str, data_directory: str | None) -> Scorer:
    """The function behind a name, bound to the data directory if it reads files."""
    module_name, _, function_name = name.partition(":")
    try:
        scorer: Callable[..., list[float]] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "write package.module:function, installed or on PYTHONPATH"
        raise ConfigError(f"{name}: no such function ({error}); {remedy}") from error
    if "data_directory" in inspect.signature(scorer).parameters:
        return functools.partial(scorer, data_directory=data_directory)
    return scorer


def scorer_digest(name: str, data_directory: str | None) -> str:
    """Hash of a scorer's source and of the files it reads."""
    load_scorer(name, data_directory)
    module = importlib.import_module(name.partition(":")[0])
    digest = hashlib.sha256(name.encode())
    if module.__file__:
        digest.update(Path(module.__file__).read_bytes())
    if hasattr(module, "files"):
        for path in module.files(data_directory):
            digest.update(file_digest(path).encode())
    return digest.hexdigest()
