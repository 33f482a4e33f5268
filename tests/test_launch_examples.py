"""The scripts of launch/examples, as somebody who has copied one starts them: on two nodes, which are this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interruption import assert_same, own_copy
from running import ROOT, TINY

from launch.local import free_port

EXAMPLES = ROOT / "launch" / "examples"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_a_shell_takes_it(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.services
@pytest.mark.beside
@pytest.mark.parametrize("starter", ["torchrun", pytest.param("deepspeed", marks=pytest.mark.soak)])
def test_two_nodes_train_as_one_machine_does(
    starter: str, tiny_run_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own_copy(tiny_run_of_two, tmp_path, ["sft", "reward"])
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PROCESSES": "1", "INTERFACE": "lo", "ADDRESS": "127.0.0.1", "PORT": str(free_port()), "PATH": binaries}
    environment = {**os.environ, **own, "STAGES": "reward ppo", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n")
    words = {"torchrun": ["2", "127.0.0.1"], "deepspeed": ["hosts", "127.0.0.1"]}[starter]
    started = []
    for node in ("0", "1"):
        command = ["sh", str(EXAMPLES / f"{starter}.sh"), str(TINY), "runs/tiny", node, *words]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **options))  # type: ignore[call-overload]
    said = [node.communicate(timeout=300)[0] for node in started]
    assert [node.returncode for node in started] == [0, 0], "\n".join(said)
    assert_same(run / "ppo", tiny_run_of_two / "ppo")
