"""The section `zero_optimization` of a file of DeepSpeed's settings, by DeepSpeed's own model of it, before a run.

    python -P -m rlhf.engine.zero_section < sections.json      a line of JSON: what is wrong with each

DeepSpeed loads torch, so that whoever loads none has a child process ask (`problems_of`).
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rlhf.engine.zero_options import ZERO

LOADS_SECONDS = 300.0  # DeepSpeed, from a slow file system


class NotAsked(Exception):
    """DeepSpeed does not load here, which says nothing of a section: on a login node, say, that has no compiler."""


def problems_of(sections: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What DeepSpeed would refuse in each section, asked of a process of its own; nothing where it is not installed.

    Raises NotAsked, with the reason in a line, where no answer comes.
    """
    if not sections or importlib.util.find_spec("deepspeed") is None:
        return [[] for _ in sections]
    command = [sys.executable, "-P", "-m", "rlhf.engine.zero_section"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONSAFEPATH": "1"}  # no GPU is taken for this
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": environment, "timeout": LOADS_SECONDS}
    try:
        done = subprocess.run(command, input=json.dumps(list(sections)), check=False, **options)
    except subprocess.TimeoutExpired:
        raise NotAsked(f"DeepSpeed does not load within {LOADS_SECONDS:g} s; see the file system") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NotAsked(f"DeepSpeed does not load ({said}); python -c 'import deepspeed' says more")
    found: list[list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def refused(section: dict[str, Any]) -> list[str]:
    """What DeepSpeed refuses in a section, a line each, by its own model. Loads DeepSpeed."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        return list(explained(error, DeepSpeedZeroConfig))
    except AssertionError as error:  # of two names for one thing
        return [f"{ZERO}: {' '.join(str(error).split())}; mend the file"]
    return []


def explained(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Each problem in a line, with its remedy."""
    for each in error.errors(include_url=False):
        place = [str(part) for part in each["loc"]]
        field = ".".join([ZERO, *place])
        if each["type"] == "extra_forbidden":
            close = difflib.get_close_matches(place[-1], names(model, place[:-1]), n=1)
            remedy = f"did you mean {close[0]}?" if close else "leave it out"
            yield f"{field} is no setting of DeepSpeed; {remedy}"
        else:
            shown = (
                ""
                if isinstance(each["input"], (dict, BaseModel))
                else f"={json.dumps(each['input'], default=str)[:60]}"
            )
            told = " ".join(each["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").split())
            yield f"{field}{shown}: {told}; mend it"


def names(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The settings of a section, or of one inside it, as a file writes them."""
    for part in path:
        kinds = get_args(field.annotation) if (field := model.model_fields.get(part)) else ()
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def main() -> None:
    """See the module."""
    print(json.dumps([refused(section) for section in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
