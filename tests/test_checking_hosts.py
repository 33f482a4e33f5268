"""The command of `rlhf doctor` on a host, and hosts that hang: by a shell of this machine's in place of ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.checking import over_ssh
from launch.checking.answering import MARK, own_version
from launch.checking.meeting import PROTOCOL
from launch.checking.over_ssh import Asked, examine_hosts
from launch.clusters.hosts import LOCALHOST, Host
from launch.clusters.site import Site


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


MANY = 12
HELLO = {MARK: {"protocol": PROTOCOL, "version": own_version()}}


@pytest.mark.parametrize(
    ("setup", "seconds"), [([], 1), ([f"echo '{json.dumps(HELLO)}'"], 1.5)], ids=["from the beginning", "later"]
)
def test_hosts_that_hang_are_waited_for_together(
    setup: list[str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself they would take 12 s and more. None ends with its connection, so that each has to be ended."""
    for name, value in {"ANSWER": 1, "FACTS": 1, "SHORT": 1, "ENDS": 1}.items():
        monkeypatch.setattr(over_ssh, f"{name}_SECONDS", value)
    hosts = [Host(LOCALHOST, f"10.0.0.{n}") for n in range(MANY)]
    site = Site(setup=[*setup, "exec sleep 600"])
    began = time.monotonic()
    verdict = examine_hosts(Asked(None, (), None, 1, 0.5), hosts, site, lambda line: None)
    took = time.monotonic() - began
    said = [finding.what for finding in verdict.findings]
    assert len(said) == MANY and f"localhost: no answer within {seconds:g} s; look whether it is well" in said, said
    assert took < MANY, took
