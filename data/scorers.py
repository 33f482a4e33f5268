"""Scorers named in a recipe as `package.module:function`: rewards, gold scores, labellers.

A scorer takes (prompts, responses) as lists of text and returns one figure each. One that reads files also takes
`data_directory=`, and its module lists those files in `files(data_directory)`, so that their content is fingerprinted.
A module is looked for among the installed ones and on PYTHONPATH, then as a file: `mine:score` and `mine.py:score` are
the function of mine.py in the working directory or the data directory.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from rlhf.errors import ConfigError, raised
from rlhf.store.artifact import file_digest
from rlhf.types import Scorer

REMEDY = "write package.module:function, installed or on PYTHONPATH, or file.py:function"


def load_scorer(name: str, data_directory: str | None) -> Scorer:
    """The function behind a name, bound to the data directory if it reads files. Raises ConfigError."""
    module_name, _, function_name = name.partition(":")
    try:
        module = load_module(module_name, data_directory)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's own module raises while it is imported
        raise ConfigError(f"{name}: {_not_imported(error, module_name, data_directory)}; {REMEDY}") from error
    place = Path(module.__file__).name if module.__file__ else module_name
    scorer: Callable[..., list[float]] | None = getattr(module, function_name, None)
    if not callable(scorer):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        functions = ", ".join(key for key in own if callable(vars(module)[key]) and not key.startswith("_"))
        has = f"it has: {functions}" if functions else "it has none"
        raise ConfigError(f"{name}: {place} has no function {function_name}; {has}")
    parameters = inspect.signature(scorer).parameters
    if "data_directory" in parameters:
        return functools.partial(scorer, data_directory=data_directory)
    return scorer


def load_module(name: str, data_directory: str | None) -> ModuleType:
    """An installed module, or that of a file; a file's is loaded once and hides no installed one."""
    # Stages run with PYTHONSAFEPATH, so that nobody's folder `data` hides ours; a file is found by its path instead.
    file = _file(name, data_directory)
    if file is None or (not name.endswith(".py") and _installed(name)):
        return importlib.import_module(name)
    alias = f"_scorers_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    if alias in sys.modules:
        return sys.modules[alias]
    specification = importlib.util.spec_from_file_location(alias, file)
    if specification is None or specification.loader is None:
        raise ConfigError(f"{name}: {file} is no Python module; {REMEDY}")
    module = importlib.util.module_from_spec(specification)
    sys.modules[alias] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module


def _not_imported(error: Exception, name: str, data_directory: str | None) -> str:
    """Why a module is not to be had: there is none, or it raises."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        relative, data = name if name.endswith(".py") else f"{name.replace('.', '/')}.py", data_directory or "."
        folders = " and ".join(dict.fromkeys(str(Path(folder).resolve()) for folder in (".", data)))
        if name.endswith(".py"):
            return f"no file {name} in {folders}"
        return f"no module {name} is installed or on PYTHONPATH, and no {relative} in {folders}"
    return f"cannot be imported ({raised(error)})"


def scorer_digest(name: str, data_directory: str | None) -> str:
    """Hash of a scorer's source and of the files it reads."""
    load_scorer(name, data_directory)
    module = load_module(name.partition(":")[0], data_directory)
    digest = hashlib.sha256(name.encode())
    if module.__file__:
        digest.update(Path(module.__file__).read_bytes())
    if hasattr(module, "files"):
        for path in module.files(data_directory):
            digest.update(file_digest(path).encode())
    return digest.hexdigest()


def _file(name: str, data_directory: str | None) -> Path | None:
    relative = name if name.endswith(".py") else f"{name.replace('.', '/')}.py"
    places = (Path(folder) / relative for folder in (".", data_directory or "."))
    return next((place for place in places if place.is_file()), None)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a parent package that is none
        return False
