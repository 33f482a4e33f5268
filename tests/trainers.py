"""SFT and reward model by two processes whose trainer shares the model out, and how what they make is compared."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from interruption import figures, manifest
from running import ROOT, TINY
from safetensors.torch import load_file
from strategies import apart

from launch.local import LocalStage

SHIM = ROOT / "tests" / "on_cpus.py"


def stage(name: str, run: Path, strategy: str, *options: str) -> Path:
    """Run a stage on two processes, as the launcher starts them; its directory."""
    shared = f"{name}.parallelism={{strategy: {strategy}, processes: 2}}"
    command = [sys.executable, str(SHIM), f"stages.{name}", "--recipe", str(TINY), "--run-dir", str(run), shared]
    outcome = LocalStage([*command, *options], 2).wait(60, print)
    assert outcome.code == 0, outcome
    return run / name


def close_to(own: Path, replicated: Path) -> None:
    """Figures within 1e-5 and weights within 1e-4 of those under DDP, and DeepSpeed's engine made them."""
    assert set(manifest(replicated)["engine"].values()) == {"DistributedDataParallel"}
    assert set(manifest(own)["engine"].values()) == {"DeepSpeedEngine"}
    found, wanted = figures(own), figures(replicated)
    assert len(found) == len(wanted) > 5
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert math.isclose(ours[key], value, rel_tol=1e-5, abs_tol=1e-5), (theirs["step"], key)
    assert apart(own / "model" / "model.safetensors", replicated / "model" / "model.safetensors") < 1e-4


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The weights in a file of safetensors."""
    return {name: tuple(weights.shape) for name, weights in load_file(file).items()}
