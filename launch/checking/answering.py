"""`rlhf doctor` as another machine has it started on a node by ssh, and talks to it in lines of JSON.

    python -P -m launch.checking.answering

It is told what is to be checked, says who it is, is told where the nodes meet, and says what has come of it. It ends
when its standard input does: who asks has gone then, and nothing is left behind. Loads no torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.checking.examination import examine
from launch.checking.meeting import PROTOCOL, Invitation
from launch.checking.node import Question
from rlhf.config import Recipe
from rlhf.errors import RLHFError
from rlhf.recipe import load_recipe

MARK = "rlhf doctor"  # of our own lines: a shell's set-up may print what it likes
ENDS_SECONDS = 30.0  # for what was begun to be cleared away


def main() -> None:
    """See the module."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if asked := receive():
            tell(answer(asked))
    except RLHFError as error:
        tell({"problems": error.problems})


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """All that is asked of this node. Raises RLHFError."""
    os.environ.update(asked["secrets"])
    if asked["protocol"] != PROTOCOL or asked["version"] != own_version():
        return {"protocol": PROTOCOL, "version": own_version()}
    recipe = None if asked["recipe"] is None else load_recipe(asked["recipe"], asked["overrides"])
    tell({"protocol": PROTOCOL, "version": own_version()})
    if (told := receive()) is None:
        return {}
    threading.Thread(target=end_with_who_asks, daemon=True).start()
    question = Question(recipe, directory_of(asked, recipe), told["nodes"], asked["processes"])
    invited = None if told["invited"] is None else Invitation(**told["invited"])
    verdict = examine(question, invited, lambda line: tell({"says": line}))
    return {"verdict": verdict.record()}


def directory_of(asked: Mapping[str, Any], recipe: Recipe | None) -> Path:
    """The run's, as somebody who types the command here would have it."""
    if asked["run"] is not None:
        return Path(asked["run"])
    return Path("runs") / recipe.name if recipe else Path("runs")


def own_version() -> str:
    """Of what is installed here."""
    try:
        return metadata.version("rlhf")
    except metadata.PackageNotFoundError:
        return "not installed"


def receive() -> Any:
    """The next line; None where there is none any more."""
    line = sys.stdin.buffer.readline()
    return json.loads(line) if line else None


def tell(message: Mapping[str, Any]) -> None:
    """Say something to who asks, if there still is somebody."""
    try:
        print(json.dumps({MARK: message}), flush=True)
    except BrokenPipeError:
        os._exit(1)


def end_with_who_asks() -> None:
    """Wait until standard input ends, and then end: by the signal after which all that was begun is cleared away."""
    with suppress(OSError):  # broken off, which is an end, too
        # Not by way of sys.stdin: the interpreter, when it ends, would find its lock taken by us, and abort.
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ENDS_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
