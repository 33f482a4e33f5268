"""DeepSpeed's engine in one process, against torch alone: the norm, a step, a gradient that is dropped, bfloat16."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ROOT

# In a process of its own: a process group would be found by the tests that come after.
SCRIPT = """
import json, sys
import torch
from torch import nn
from rlhf.config import ParallelismConfig
from rlhf.engine.choice import build
from rlhf.engine.ddp import DdpEngine
from rlhf.engine.optimizer import OptimizerOptions
from tests.test_models import tiny_policy

TOKENS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
RATES = dict(learning_rate=1e-2, learning_rate_end=0.5, warmup_steps=2, total_steps=10, weight_decay=0.1)

def options(bfloat16=False):
    return OptimizerOptions(**RATES, max_grad_norm=0.05, bfloat16=bfloat16)

def learn(engine, sign=1.0):
    for rows, last in ((TOKENS[:1], False), (TOKENS[1:], True)):
        with engine.micro_batch(last):
            logits = engine(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits
            engine.backward(sign * logits.float().logsumexp(-1).sum())
    return logits.dtype

def flat(engine):
    from rlhf.sharding import whole
    return torch.cat([whole(p).detach().flatten() for p in engine.module.parameters()])

def run(engine):
    learn(engine); before = flat(engine); dropped = engine.norm(); engine.skip(2)
    unmoved = bool(torch.equal(before, flat(engine)))
    norms = []
    for _ in range(3):
        learn(engine); told = engine.norm(); norms.append((told, engine.step()))
    engine.skip(0)
    return {"dropped": dropped, "unmoved": unmoved, "norms": norms, "weights": flat(engine)}

wanted = run(DdpEngine(tiny_policy(), options()))
found = {}
for strategy in ("zero1", "zero2", "zero3"):
    for offload in (False, True):
        parallelism = ParallelismConfig(strategy=strategy, cpu_offload=offload)
        made = run(build(tiny_policy(), options(), parallelism, None))
        made["apart"] = float((made.pop("weights") - wanted["weights"]).abs().mean())
        found[f"{strategy}{', offloaded' * offload}"] = made
    engine = build(tiny_policy(), options(bfloat16=True), ParallelismConfig(strategy=strategy), None)
    found[strategy]["dtypes"] = [str(learn(engine)), str(next(engine.module.parameters()).dtype)]
del wanted["weights"]
print("RESULT", json.dumps({"wanted": wanted, "found": found}))
"""
STRATEGIES = [f"zero{stage}{offloaded}" for stage in (1, 2, 3) for offloaded in ("", ", offloaded")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script: Path = tmp_path_factory.mktemp("script") / "engines.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]}\n{SCRIPT}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=script.parent)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_norms_before_and_behind_a_step_are_torchs(results: dict[str, Any], strategy: str) -> None:
    found, wanted = results["found"][strategy], results["wanted"]
    assert found["dropped"] == pytest.approx(wanted["dropped"], rel=1e-5)
    for ours, theirs in zip(found["norms"], wanted["norms"], strict=True):
        assert ours[0] == pytest.approx(ours[1], rel=1e-6) == pytest.approx(theirs[0], rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_dropped_moves_nothing_and_leaves_nothing(results: dict[str, Any], strategy: str) -> None:
    """Weights behind three steps are those of torch alone, schedule, clipping and weight decay included.

    In the mean: of a gradient as small as Adam's epsilon rounding decides, and a weight or two are 6e-5 apart.
    """
    assert results["found"][strategy]["unmoved"]
    assert results["found"][strategy]["apart"] < 1e-6


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_bfloat16_computes_over_float32_weights(results: dict[str, Any], strategy: str) -> None:
    assert results["found"][strategy]["dtypes"] == ["torch.bfloat16", "torch.float32"]
