"""Reads the file that an offline W&B run leaves: records in the chunks of LevelDB's log, each a protobuf message."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32_768  # of the record format
HEADER = 7  # bytes of the file's own header, and of each chunk's


@dataclass
class OfflineRun:
    """What stands in the file of an offline run."""

    directory: Path
    id: str = ""
    group: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the history, in order
    summary: dict[str, Any] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)  # names of artifacts
    made: list[str] = field(default_factory=list)
    artifacts: dict[str, Any] = field(default_factory=dict)  # by name
    system: list[set[str]] = field(default_factory=list)  # names of what was measured at a time
    ended: bool = False


def read_offline_run(stage: Path) -> OfflineRun:
    """The one offline run that a stage has left; an error where it has left another number of them."""
    (path,) = stage.glob("wandb/offline-run-*/*.wandb")
    run = OfflineRun(path.parent)
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run.id, run.group, run.job_type = record.run.run_id, record.run.run_group, record.run.job_type
                run.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                items = record.history.item
                run.rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
            case "summary":
                for item in record.summary.update:
                    run.summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            case "artifact":
                artifact = record.artifact
                run.artifacts[artifact.name] = artifact
                (run.used if artifact.use_after_commit else run.made).append(artifact.name)
            case "stats":
                run.system.append({item.key for item in record.stats.item})
            case "exit":
                run.ended = True
    return run


def records(path: Path) -> Iterator[Any]:
    """The messages of a file, up to its end or to where a kill has cut it off."""
    content = b""
    for kind, payload in chunks(path.read_bytes()):
        content = payload if kind in (1, 2) else content + payload
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            yield record


def chunks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each chunk: 1 whole record, 2 first, 3 middle, 4 last part of one."""
    position = HEADER
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if left < HEADER or (length == 0 and kind == 0):
            position += left
            continue
        yield kind, content[position + HEADER : position + HEADER + length]
        position += HEADER + length
