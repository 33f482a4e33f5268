"""The command of `rlhf doctor` on a host, and hosts that hang: by a shell of this machine's in place of ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from launch.checking.answering import MARK, own_version
from launch.checking.meeting import PROTOCOL


def test_it_ends_well_while_who_asked_still_listens(tmp_path: Path) -> None:
    """More processes than GPUs: torch is not loaded for this."""
    asked = {"secrets": {}, "protocol": PROTOCOL, "version": own_version(), "recipe": None, "overrides": []}
    lines = [asked | {"run": str(tmp_path), "processes": 2}, {"nodes": 1, "invited": None}]
    command = [sys.executable, "-P", "-m", "launch.checking.answering"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
        process.stdin.flush()
        said = [json.loads(line)[MARK] for line in process.stdout]
        assert (process.wait(60), process.stderr.read()) == (0, "")
    assert said[-1]["verdict"]["findings"] and list(tmp_path.iterdir()) == []
