"""Weights & Biases, offline and for real: what a run's file holds, also after a stage was interrupted."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from interruption import EVERY_STEP, kill_tree, lines_of, own_copy, start, wait_for
from running import TINY, rlhf
from wandb.proto import wandb_internal_pb2

ONLINE_OFF = "tracking.wandb.mode=offline"
BLOCK = 32_768  # of the record format, as in LevelDB's log


def chunks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each chunk: 1 whole record, 2 first, 3 middle, 4 last part of one."""
    position = 7  # behind the file's own header
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if left < 7 or (length == 0 and kind == 0):
            position += left
            continue
        yield kind, content[position + 7 : position + 7 + length]
        position += 7 + length


def history(stage: Path) -> list[dict[str, object]]:
    """The rows of the one W&B run that a stage has left."""
    (path,) = stage.glob("wandb/offline-run-*/*.wandb")
    rows, record = [], b""
    for kind, payload in chunks(path.read_bytes()):
        record = payload if kind in (1, 2) else record + payload
        if kind in (1, 4):
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            if parsed.WhichOneof("record_type") == "history":
                items = parsed.history.item
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def compared(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if not k.startswith(("_", "perf/", "samples/"))} for row in rows]


def test_an_interrupted_stage_leaves_one_run_without_a_double_or_a_gap(tiny_run: Path, tmp_path: Path) -> None:
    whole = own_copy(tiny_run, tmp_path / "whole", ["sft", "reward"])
    assert rlhf("ppo", str(TINY), ONLINE_OFF, folder=tmp_path / "whole").returncode == 0
    undisturbed = history(whole / "ppo")
    assert [row["rlhf/step"] for row in undisturbed] == [0, 1, 2, 3]
    assert ["objective/kl" in row for row in undisturbed] == [False, True, True, True]
    assert ["eval/scores" in row for row in undisturbed] == [True, False, True, True]
    assert [any(key.startswith("samples/held-out") for key in row) for row in undisturbed] == [True, False, True, True]

    killed = own_copy(tiny_run, tmp_path / "killed", ["sft", "reward"])
    process = start("ppo", str(TINY), ONLINE_OFF, EVERY_STEP, folder=tmp_path / "killed")
    assert wait_for(lambda: lines_of(killed / "ppo" / "metrics.jsonl") >= 4, process)
    kill_tree(process)
    identity = (killed / "ppo" / "wandb" / "id").read_text()
    assert rlhf("ppo", str(TINY), ONLINE_OFF, EVERY_STEP, folder=tmp_path / "killed").returncode == 0
    assert (killed / "ppo" / "wandb" / "id").read_text() == identity
    assert compared(history(killed / "ppo")) == compared(undisturbed)


def test_a_service_that_knows_some_steps_is_sent_the_others_alone(tmp_path: Path) -> None:
    from rlhf.tracking.jsonl import JsonlTracker
    from rlhf.tracking.wandb import WandbTracker

    class Run:
        def __init__(self) -> None:
            self.rows: list[tuple[int, dict[str, object]]] = []
            self.summary: dict[str, object] = {}

        def define_metric(self, *_: object, **__: object) -> None:
            pass

        def log(self, row: dict[str, object], step: int) -> None:
            self.rows.append((step, row))

    files = JsonlTracker(tmp_path)
    for step in (1, 2, 3):
        files.log(step, {"loss": float(step)})
    files.table(3, "held-out", [{"prompt": "p", "score": 1.0}])
    files.close()
    run = Run()
    tracker = WandbTracker(run, known=2)  # what a killed stage had sent before step 3
    tracker.replay(tmp_path)
    tracker.log(2, {"loss": 2.0})  # made again behind the checkpoint
    tracker.log(4, {"loss": 4.0})
    WandbTracker(run, known=4).log(4, {"reward/accuracy": 0.8})  # the closing figure of a stage that ended at step 4
    assert run.summary["reward/accuracy"] == 0.8
    assert [(step, row.get("loss")) for step, row in run.rows if "samples/held-out" not in row] == [(3, 3.0), (4, 4.0)]
    assert [step for step, row in run.rows if "samples/held-out" in row] == [3]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
