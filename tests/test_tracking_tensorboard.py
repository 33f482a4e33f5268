"""TensorBoard's event files, read back by TensorBoard itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tracked import MANIFEST, cut_back, log_steps, open_at

pytest.importorskip("tensorboard")
ON = "tracking.tensorboard=true"


def events(stage: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list((stage / "tensorboard").glob("events.*"))) == 1
    read = EventAccumulator(str(stage / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    return read


def test_a_stage_that_goes_on_leaves_no_double_and_no_gap(tmp_path: Path) -> None:
    stage = tmp_path / "ppo"
    tracker = open_at(stage, [ON])
    log_steps(tracker, 1, 5)
    tracker.close()
    cut_back(stage, 3)
    tracker = open_at(stage, [ON], resumed=True)
    log_steps(tracker, 4, 6)
    tracker.log(6, {"val/explained_variance": float("nan")})
    tracker.result(MANIFEST)
    tracker.close()

    read = events(stage)
    kl = read.Scalars("objective/kl")
    assert [(event.step, event.value) for event in kl] == [(step, step / 4) for step in range(1, 7)]
    times = [json.loads(line)["time"] for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert kl[0].wall_time == pytest.approx(times[0], abs=0.01)
    assert [event.step for event in read.Scalars("eval/scores")] == [2, 4, 6]
    (odd,) = read.Scalars("val/explained_variance")
    assert odd.value != odd.value
    samples = read.Tensors("samples/held-out")
    assert [event.step for event in samples] == [2, 4, 6]
    assert samples[0].tensor_proto.string_val[0].decode().splitlines()[-1] == "| p\\|q | r<br>2 | 2 |"
    assert read.PluginTagToContent("text").keys() >= {"recipe", "samples/held-out", "results"}
    assert '"steps": 3' in read.Tensors("recipe")[0].tensor_proto.string_val[0].decode()
    assert "| kl | 1.5 |" in read.Tensors("results")[0].tensor_proto.string_val[0].decode()
