"""Stands in for a stage and its agent where the supervisors are tried and not what they start: no torch, no training.

    python light_stage.py RUN STAGE NODE NODES ATTEMPT

What it does is said in RUN/behaviour.json, by "STAGE.NODE.ATTEMPT": crash, bad input, away, wait; else it meets others
and hands on a result, as a stage would, unless that is unseen. SIGTERM ends it behind a "checkpoint".
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from rlhf.recipe import load_recipe
from rlhf.store.artifact import publish
from stages.lineage import lineage_of


def leave(code: int, node: str) -> None:
    """Exit as a stage does."""
    Path(os.environ["RLHF_CODES"], node).write_text(str(code))
    os._exit(code)


def main() -> None:
    run, stage, node, nodes, attempt = Path(sys.argv[1]), *sys.argv[2:]

    def stop(number: int, frame: object) -> None:
        (run / f"checkpoint.{node}.{attempt}").touch()
        leave(75, node)

    signal.signal(signal.SIGTERM, stop)
    (run / f"{stage}.{node}.{attempt}").write_text(str(os.getpid()))
    print(f"{stage} on {node}", flush=True)
    behaviour = json.loads((run / "behaviour.json").read_text()).get(f"{stage}.{node}.{attempt}", "")
    if behaviour == "crash":
        leave(1, node)
    if behaviour == "away":
        leave(74, node)
    if behaviour == "bad input":
        leave(2, node)
    while behaviour == "wait" or not all((run / f"{stage}.{n}.{attempt}").exists() for n in range(int(nodes))):
        time.sleep(0.05)
    if node == "0" and behaviour != "unseen":
        (run / stage).mkdir(exist_ok=True)
        lineage = lineage_of(load_recipe(run / "recipe.yaml"), stage, run)
        publish(run / stage, lineage, {"results": {}, "seconds": 0.0})
    leave(0, node)


if __name__ == "__main__":
    main()
