"""PPO under ways to share models out over real processes, and how what they make is compared."""

from __future__ import annotations

import math
from pathlib import Path

from interruption import EVERY_STEP, figures, manifest, own_copy
from running import TINY, rlhf
from safetensors.torch import load_file

STEPS = 10
LORA = "model.lora={rank: 4, alpha: 8.0}"
# Four rows of a minibatch on each of four processes, one or two in a micro-batch: gradients of several are summed.
WORK = (f"ppo.steps={STEPS}", "ppo.prompts_per_step=16", "ppo.minibatches=1", "ppo.micro_batch_tokens=100")


def shared(strategy: str, processes: int = 2, **settings: object) -> str:
    """An override: PPO under a strategy."""
    more = "".join(f", {name}: {value}" for name, value in settings.items())
    return f"ppo.parallelism={{strategy: {strategy}, processes: {processes}{more}}}"


def ppo(reference: Path, folder: Path, *overrides: str) -> Path:
    """A PPO run of its own of several steps; its directory."""
    run = own_copy(reference, folder, ["sft", "reward"])
    done = rlhf("ppo", str(TINY), "ppo.evaluate_every=0", *WORK, *overrides, folder=folder, seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return run / "ppo"


def stopped(reference: Path, folder: Path, *overrides: str) -> Path:
    """A run that was stopped after two of the tiny recipe's three steps."""
    run = own_copy(reference, folder, ["sft", "reward"])
    done = rlhf("ppo", str(TINY), EVERY_STEP, *overrides, "--stop-after", "2", folder=folder, seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return run / "ppo"


def compare(own: Path, replicated: Path, wrapper: str) -> None:
    """What a strategy made against what one process made: figures within 1e-5, weights behind ten steps of Adam."""
    engines = manifest(own)["engine"]
    assert engines.keys() == manifest(replicated)["engine"].keys()
    assert all(each.startswith(wrapper) for each in engines.values()), engines
    wanted, found = figures(replicated), figures(own)
    assert len(found) == len(wanted) == STEPS
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert math.isclose(ours[key], value, rel_tol=1e-5, abs_tol=1e-5), (theirs["step"], key)
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (own / file).exists() == (replicated / file).exists()
        if (own / file).exists():
            assert apart(own / file, replicated / file) < 1e-4


def goes_on_to_rounding(before: str, after: str, reference: Path, folder: Path) -> None:
    """A run that is stopped under one strategy and goes on under another has the figures of replicated training."""
    own = stopped(reference, folder, before)
    done = rlhf("ppo", str(TINY), EVERY_STEP, after, folder=folder, seconds=600)
    assert done.returncode == 0 and "it goes on to rounding, not bit for bit" in done.stdout, done.stderr
    for ours, theirs in zip(figures(own), figures(reference / "ppo"), strict=True):
        for key, value in theirs.items():
            assert math.isclose(ours[key], value, rel_tol=1e-4, abs_tol=1e-4), (theirs["step"], key)


def apart(one: Path, other: Path) -> float:
    """The largest difference between the weights of two files of the same names."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)
