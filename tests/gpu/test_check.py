"""`pytest -m gpu`: the whole road on this machine's GPU; the table is printed with -s."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from running import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("size", ["small", "half-billion"])
def test_all_stages_run_and_learn(size: str) -> None:
    assert torch.cuda.is_available(), "pytest -m gpu needs a GPU"
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "check.py"), "--size", size]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
